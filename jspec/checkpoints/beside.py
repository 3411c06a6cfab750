"""Load a drafter's model beside its target, whose embedding and head it may share.

A directory whose `config.json` says `"shares_embedding": true` holds layers and the final norm
alone. Its embedding and its head are the target's own arrays, so that they are in memory once. Two
more entries say which target it was made for: `target_digest`, and the sizes of the model.

In reading order: `load_beside`, `checkpoint_beside`, `check_made_for`.
"""

from __future__ import annotations

from pathlib import Path

from jspec.checkpoints.checkpoint import Checkpoint, find_checkpoint
from jspec.checkpoints.hub import weights_digest
from jspec.checkpoints.target import (
    Target,
    abstract_target,
    check_causal,
    check_same_tokenizer,
    load_model,
)
from jspec.errors import UserError
from jspec.models.weights import SHARED
from jspec.sharding import REPLICATED, Table


def load_beside(
    target: Target,
    path_or_id: str | Path | Checkpoint,
    *,
    table: Table = REPLICATED,
    must_be_causal: bool = False,
) -> Target:
    """Load a drafter's model like its target: same types and mesh, and as abstract.

    What it shares with the target are the target's arrays themselves, placed as the target's.

    Raises:
      UserError: as `load_model`, another target than it was made for, another tokenizer than the
        target's; of an abstract one, where its config is not here.
    """
    checkpoint = checkpoint_beside(target, path_or_id)
    if must_be_causal:
        check_causal(checkpoint)
    shared = None
    if checkpoint.shares_embedding:
        described = checkpoint.described
        check_made_for(checkpoint, target, described.width, described.vocab_size)
        shared = {name: target.params[name] for name in SHARED if name in target.params}
    load = abstract_target if target.is_abstract else load_model
    loaded = load(
        checkpoint,
        dtype=target.dtype,
        weights=target.weights,
        mesh=target.mesh,
        table=table,
        shared=shared,
    )
    check_same_tokenizer(target, loaded)
    return loaded


def checkpoint_beside(target: Target, path_or_id: str | Path | Checkpoint) -> Checkpoint:
    """Find a drafter's checkpoint; for an abstract target nothing is downloaded.

    Raises:
      UserError: as `find_checkpoint`.
    """
    return find_checkpoint(path_or_id, downloads=not target.is_abstract)


def check_made_for(checkpoint: Checkpoint, target: Target, width: int, vocab_size: int) -> None:
    """Refuse a drafter that shares arrays of a target, and was made for another one.

    Weights are compared by the digest in its `config.json`, where it has one and the target comes
    from a directory; not for an abstract target, which may be planned with before it is here.

    Args:
      width, vocab_size: those that the drafter was made for.

    Raises:
      UserError: another width, another vocabulary, or other weights.
    """
    theirs = target.model.config
    for what, made_for, given in (
        ("hidden size", width, theirs.width),
        ("vocabulary", vocab_size, theirs.vocab_size),
    ):
        if made_for != given:
            raise UserError(
                f"{checkpoint.where} was trained for a target with a {what} of {made_for}, this "
                f"one has {given}; give the target that the drafter was trained for"
            )
    expected = checkpoint.values.get("target_digest")
    if expected is None or target.is_abstract or target.path is None:
        return
    found = weights_digest(target.path)
    if found != expected:
        raise UserError(
            f"{checkpoint.where} was trained for a target with digest {str(expected)[:12]}..., "
            f"{target.path} has {found[:12]}...; give the target that the drafter was trained "
            "for, or remove target_digest from its config.json"
        )
