"""Whether two checkpoints speak the same tokens."""

from __future__ import annotations

from jspec.checkpoints.target import Target
from jspec.checkpoints.tensor_files import read_json
from jspec.errors import UserError
from jspec.text_files import read_text


def check_same_tokenizer(target: Target, drafter: Target) -> None:
    """Refuse a drafter whose token ids mean something else.

    Where both checkpoints carry a tokenizer their vocabularies are compared, since published sizes
    differ by padding within a series; otherwise the sizes have to be equal, unless only shapes are
    planned with.

    Raises:
      UserError: with both sizes, or the first token that differs.
    """
    ours, theirs = _vocabulary(target), _vocabulary(drafter)
    if ours is None or theirs is None:
        if target.vocab_size != drafter.vocab_size and not target.is_abstract:
            raise UserError(
                f"the drafter has a vocabulary of {drafter.vocab_size} and the target one of "
                f"{target.vocab_size}; choose a drafter with the target's tokenizer"
            )
        return
    shared = ours.keys() & theirs.keys()
    different = next((token for token in shared if ours[token] != theirs[token]), None)
    if different is not None or len(shared) < 0.99 * len(ours):
        example = (
            f" ({different!r} is {theirs[different]}, not {ours[different]})"
            if (different is not None)
            else ""
        )
        raise UserError(
            f"the drafter's tokenizer is not the target's{example}; "
            "choose a drafter of the same series"
        )


def count_ids(model: Target) -> int:
    """Count the tokens; beyond them a model's embedding may have rows of padding."""
    pieces = _vocabulary(model)
    return min(max(pieces.values()) + 1, model.vocab_size) if pieces else model.vocab_size


def _vocabulary(model: Target) -> dict[str, int] | None:
    """List pieces and ids as the checkpoint's own files do; None where it has none."""
    if model.path is None:
        return None
    fast, pieces = model.path / "tokenizer.json", model.path / "tokenizer.model"
    listed, added = model.path / "vocab.json", model.path / "added_tokens.json"
    try:
        if fast.exists():
            from tokenizers import Tokenizer

            return Tokenizer.from_str(read_text(fast)).get_vocab()
        if pieces.exists():
            from sentencepiece import SentencePieceProcessor

            processor = SentencePieceProcessor(model_file=str(pieces))
            return {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
        if listed.exists():
            return read_json(listed) | (read_json(added) if added.exists() else {})
    except Exception as error:  # both libraries raise bare Exceptions and RuntimeErrors
        raise UserError(f"the tokenizer in {model.path} cannot be read: {error}") from None
    return None
