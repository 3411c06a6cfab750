"""Byte-level BPE of a directory that holds `vocab.json` and `merges.txt`, as GPT-2's did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jspec.checkpoints.tokenizer.files import TokenizerFiles
from jspec.errors import UserError


def is_byte_level(pieces: Mapping[str, int]) -> bool:
    """Whether these are pieces as GPT-2's: all bytes are there, and no word ends are marked."""
    from tokenizers import pre_tokenizers

    has_bytes = all(byte in pieces for byte in pre_tokenizers.ByteLevel.alphabet())
    return has_bytes and not any(piece.endswith("</w>") for piece in pieces)


def read_byte_level(files: TokenizerFiles) -> Any:
    """A tokenizer of the `tokenizers` library that splits as GPT-2 does.

    Raises:
      UserError: added tokens whose ids it would not give them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    paths = (str(files.folder / name) for name in ("vocab.json", "merges.txt"))
    backend: Any = Tokenizer(models.BPE.from_file(*paths))
    has_prefix = files.config.get("add_prefix_space") is True
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix)
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, files)
    bos = files.special.get("bos_token", "")
    bos_id = backend.token_to_id(bos)
    if files.config.get("add_bos_token") is True and bos_id is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bos_id)]
        )
    return backend


def _add_tokens(backend: Any, files: TokenizerFiles) -> None:
    from tokenizers import AddedToken

    named = {backend.id_to_token(token_id) for token_id in files.model_ids.values()}
    backend.add_special_tokens([name for name in named if name])
    for token in sorted(files.added, key=lambda token: token.id or 0):
        if token.id is None and backend.token_to_id(token.text) is None:
            continue  # in no vocabulary
        backend.add_tokens(
            [
                AddedToken(
                    token.text,
                    lstrip=token.takes_left,
                    rstrip=token.takes_right,
                    single_word=token.is_word,
                    normalized=False,
                    special=token.is_special,
                )
            ]
        )
        given = backend.token_to_id(token.text)
        if token.id is not None and token.id != given:
            raise UserError(
                f"{files.folder}: the added token {token.text!r} has id {token.id}, which would "
                f"be {given}; add a tokenizer.json"
            )


def has_pieces(backend: Any, pieces: Mapping[str, int]) -> bool:
    """Whether a tokenizer has all of these, under the same ids."""
    known = backend.get_vocab(with_added_tokens=True)
    return all(known.get(piece) == token_id for piece, token_id in pieces.items())
