"""What several tests of `jspec.aot` compile: a tiny target with a drafter, as a config file."""

import pytest
import yaml

from jspec.checkpoints.write import write_checkpoint
from jspec.testing.models import tiny_target


@pytest.fixture(scope="module")
def config_file(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("aot")
    target = tiny_target(n_heads=4, n_kv_heads=2)
    write_checkpoint(folder / "target", target.params, target.model.config)
    values = {"target": str(folder / "target"), "dtype": "bfloat16", "drafter": "prompt-lookup"}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "config.yaml")
