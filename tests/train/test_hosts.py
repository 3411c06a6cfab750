"""Two processes of two devices train as one process does: stop, checkpoint, resume and export."""

from __future__ import annotations

import pytest

from jspec.checkpoints.checkpoint import find_checkpoint
from jspec.drafters.falcon.checkpoint import read_config as read_head_config
from jspec.train.journal import read_journal
from tests.support.hosts import free_port, run_together
from tests.support.training import PARTS, TwoParts, loop_config, random_text, run_training

PROCESS = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_disable_most_optimizations", True)
directory, port, process = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
kind = sys.argv[4]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
from jspec.errors import UserError
from tests.support.hosts import free_port, run_together
from tests.support.training import loop_config, run_training
config = loop_config(data=2, fsdp=2, micro_batch_size=4)
asked = iter(range(1, 5))
def should_stop():
    return process == 1 and next(asked) == 3
stopped = run_training(directory, config, kind=kind, should_stop=should_stop)
assert (stopped.steps, stopped.is_complete) == (3, False), stopped
outcome = run_training(directory, config, kind=kind, resume=True)
assert (outcome.steps, outcome.is_complete) == (4, True), outcome
assert (directory / "model" / "config.json").is_file()
try:
    run_training(directory / "other", loop_config(data=2))
except UserError as error:
    assert "give a mesh of all of them" in str(error)
else:
    raise AssertionError("a mesh that leaves out devices of a process")
print(outcome.best_step, outcome.held_out)
"""


@pytest.fixture(scope="module", params=PARTS)
def hosts(request, tmp_path_factory):
    """What a run by two processes trained, its directory, and what each printed last."""
    kind = request.param
    directory, port = tmp_path_factory.mktemp("hosts"), free_port()
    done = run_together([("-c", PROCESS, directory, port, host, kind) for host in range(2)])
    assert [each.code for each in done] == [0, 0], [each.err[-3000:] for each in done]
    said = [each.out.split()[-2:] for each in done]
    return kind, directory, said


@pytest.mark.grid
def test_two_processes_train_as_one_does_and_agree(hosts, tmp_path):
    """They stop because the second is told to, and go on from a checkpoint that both wrote."""
    kind, directory, said = hosts
    assert said[0] == said[1]
    # What is drawn depends on a sequence's place in its batch, and that on the processes.
    data = TwoParts(**vars(random_text()))
    outcome = run_training(tmp_path, loop_config(micro_batch_size=4), kind=kind, data=data)
    assert said[0][0] == str(outcome.best_step)
    records, wanted = read_journal(directory), read_journal(tmp_path)
    # The evaluation at step 2 was before the stop, so that both journals have the same lines.
    assert [r["step"] for r in records] == [r["step"] for r in wanted]
    for record, other in zip(records, wanted, strict=True):
        for key in {"loss", "accuracy", "shown", "gradient_norm", "held_out"} & set(other):
            assert record[key] == pytest.approx(other[key], rel=1e-4)


@pytest.mark.grid
def test_one_process_goes_on_with_what_two_began(hosts):
    """Weights and the place in the data depend on neither the processes nor their devices."""
    kind, directory, _ = hosts
    outcome = run_training(directory, loop_config(steps=5), kind=kind, resume=True)
    assert (outcome.steps, outcome.is_complete) == (5, True)
    written = find_checkpoint(directory / "model")
    config = read_head_config(written).decoder if kind == "falcon" else written.config
    assert config.width == 16
