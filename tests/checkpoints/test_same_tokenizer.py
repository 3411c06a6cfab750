"""Two checkpoints have one tokenizer where their pieces have the same ids."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jspec.checkpoints.checkpoint import Checkpoint
from jspec.checkpoints.target import Target, check_same_tokenizer
from jspec.errors import UserError
from jspec.testing.models import tiny_target

PIECES = {f"w{i}": i for i in range(200)}


@pytest.fixture
def model(tmp_path):
    """Makes models of one size whose directories list other pieces."""
    bare = tiny_target(n_layers=1)

    def make(name: str, pieces: dict[str, int]) -> Target:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.json").write_text(json.dumps(pieces))
        files = Checkpoint(name=name, path=tmp_path / name, values={})
        return dataclasses.replace(bare, checkpoint=files)

    return make


def test_pieces_may_be_more_and_hardly_fewer(model):
    """One of a hundred may be missing."""
    target, pieces = model("target", PIECES), list(PIECES.items())
    check_same_tokenizer(target, model("more", PIECES | {"x": 200, "y": 201}))
    check_same_tokenizer(target, model("few missing", dict(pieces[2:])))
    with pytest.raises(UserError, match="tokenizer is not the target's; choose a drafter of the"):
        check_same_tokenizer(target, model("many missing", dict(pieces[3:])))


def test_no_piece_may_mean_another_id(model):
    other = PIECES | {"w7": 8, "w8": 7}
    with pytest.raises(UserError, match=r"not the target's \('w(7' is 8, not 7|8' is 7, not 8)\);"):
        check_same_tokenizer(model("target", PIECES), model("other", other))
