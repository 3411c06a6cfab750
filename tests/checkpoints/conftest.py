"""Fixtures of the tests of checkpoints and tokenizers."""

from tests.support.directories import checkpoints as checkpoints
