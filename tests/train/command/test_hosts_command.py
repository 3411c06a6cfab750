"""Two processes: a model with `init_from` and a teacher, and texts on a mesh, as of one process."""

from __future__ import annotations

import json

import pytest
import yaml

from jspec.train.command.cli import main
from jspec.train.journal import read_journal
from tests.support.hosts import free_port, run_together

PROCESS = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_disable_most_optimizations", True)
port, process, configs = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
from jspec.train.command.cli import main
for config in configs:
    assert main(["--config", config]) == 0, config
"""


@pytest.fixture
def configs(target_folder, corpus_folder, tmp_path):
    def write(out: str, *, mesh: dict, texts_mesh: dict) -> list[str]:
        data = {"folder": str(corpus_folder), "corpora": ["stories.jsonl"], "length": 32}
        model = {
            "kind": "model",
            "tokenizer": str(target_folder),
            "init_from": str(target_folder),
            "teacher": str(target_folder),
            "steps": 2,
            "batch_size": 4,
            "log_every": 1,
            "eval_every": 2,
            "compute_dtype": "float32",
            "mesh": mesh,
        }
        texts = {
            "kind": "texts",
            "target": str(target_folder),
            "n_texts": 6,
            "prompt_tokens": 4,
            "max_new_tokens": 5,
            "batch_size": 4,
            "mesh": texts_mesh,
        }
        paths = []
        for name, values in (("model", model), ("texts.jsonl", texts)):
            path = tmp_path / f"{out}-{name}.yaml"
            here = {"out": str(tmp_path / out / name), "data": data | {"held_out": 0.1}}
            path.write_text(yaml.safe_dump(values | here), encoding="utf-8")
            paths.append(str(path))
        return paths

    return write


@pytest.mark.grid
def test_two_processes_do_what_one_does(configs, tmp_path):
    port = free_port()
    there = configs("two", mesh={"data": 2, "fsdp": 2}, texts_mesh={"data": 2, "tensor": 2})
    done = run_together([("-c", PROCESS, port, host, *there) for host in range(2)])
    assert [each.code for each in done] == [0, 0], [each.err[-3000:] for each in done]
    for config in configs("one", mesh={}, texts_mesh={}):
        assert main(["--config", config]) == 0
    two, one = (read_journal(tmp_path / name / "model") for name in ("two", "one"))
    found, wanted = (next(r for r in records if r.get("step") == 1) for records in (two, one))
    # The student begins as its teacher, whatever batch it is given.
    assert found["agreement"] == wanted["agreement"] == 1.0
    texts = [
        sorted((tmp_path / name / "texts.jsonl").read_text().splitlines())
        for name in ("two", "one")
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 6
    assert all(json.loads(line)["tokens"] for line in texts[0])
