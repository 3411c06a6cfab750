"""Commands run in this process, on the tiny checkpoints of `tests.support.directories`."""

from tests.support.commands import checkpoints as checkpoints
from tests.support.commands import infer as infer
