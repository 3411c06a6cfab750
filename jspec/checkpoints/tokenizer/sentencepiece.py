"""The vocabulary of a directory that holds a SentencePiece `tokenizer.model`, no `tokenizer.json`.

Vicuna and the first Llamas are published so. SentencePiece itself splits the text between special
tokens. Around it are the rules of `transformers`: which tokens are special, and whether the text
after a special token begins with a space of its own, as the whole text does (`legacy: true`, or
nothing said), or not (`legacy: false`). `add_prefix_space` wins over what the model says of it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jspec.checkpoints.tokenizer.files import TokenizerFiles, added_token
from jspec.checkpoints.tokenizer.vocabulary import Pieces
from jspec.errors import UserError

if TYPE_CHECKING:
    from tokenizers import AddedToken

_UNKNOWN, _CONTROL = 2, 3
"""Types of pieces that no text is split into."""


def read_model(path: Path) -> Any:
    """Parse the file.

    Raises:
      UserError: no SentencePiece model, or one that places spaces as no rule here knows.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    try:
        model.ParseFromString(path.read_bytes())
        is_one = len(model.pieces) > 0
    except DecodeError:
        is_one = False
    if not is_one:
        raise UserError(f"{path}: no SentencePiece model; expected one, or a tokenizer.json")
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(
            f"{path}: spaces follow words (treat_whitespace_as_suffix), which is not supported; "
            "add a tokenizer.json made from it"
        )
    return model


class SentencePieceVocabulary:
    """A SentencePiece model, and tokens that are found before it splits a text.

    Args:
      model: from `read_model`.
      files: what else the directory says.
    """

    def __init__(self, model: Any, files: TokenizerFiles):
        config = files.config
        self._is_legacy = config.get("legacy") is not False
        self._drops_spaces = bool(model.normalizer_spec.remove_extra_whitespaces)
        has_prefix = config.get("add_prefix_space")
        if not isinstance(has_prefix, bool):
            has_prefix = bool(model.normalizer_spec.add_dummy_prefix)
        self._prefixed = _processor(model, has_prefix=True)
        self._bare = _processor(model, has_prefix=False)
        self._first = self._prefixed if has_prefix else self._bare
        self._n_pieces = len(model.pieces)
        added = _added_tokens(model, files)
        self._added = {token.content: token_id for token_id, token in added.items()}
        self._names = {token_id: token.content for token_id, token in added.items()}
        self._pattern = _pattern(added.values())
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.byte_ids = frozenset(i for i in range(self._n_pieces) if self._bare.is_byte(i))
        own = {role: getattr(self._bare, f"{role}_id")() for role in ("bos", "eos", "unk", "pad")}
        self.names: dict[str, str] = {
            f"{role}_token": self._bare.id_to_piece(i) for role, i in own.items() if i >= 0
        }
        self.before = self._ids(files, "bos") if config.get("add_bos_token") is not False else ()
        self.after = self._ids(files, "eos") if config.get("add_eos_token") is True else ()

    def _ids(self, files: TokenizerFiles, role: str) -> tuple[int, ...]:
        """Find BOS or EOS as the files name it, else the model's own; empty where there is none."""
        name = files.special.get(f"{role}_token")
        if name is None and f"{role}_token" not in files.config:
            name = self.names.get(f"{role}_token")
        found = None if name is None else self.id_of(name)
        return () if found is None else (found,)

    @property
    def n_ids(self) -> int:
        return max(self._n_pieces - 1, *self._names) + 1

    def encode(self, texts: Sequence[str], *, is_whole: bool) -> list[Pieces]:
        return [self._encode(text, is_whole) for text in texts]

    def _encode(self, text: str, is_whole: bool) -> Pieces:
        before, after = (self.before, self.after) if is_whole else ((), ())
        ids, spans = list(before), [(0, 0)] * len(before)
        end = 0
        for match in self._pattern.finditer(text):
            self._split(text, end, match.start(), ids, spans)
            token = match[0] if match[0] in self._added else match[0].strip()
            ids.append(self._added[token])
            spans.append(match.span())
            end = match.end()
        self._split(text, end, len(text), ids, spans)
        ids += after
        spans += [(len(text), len(text))] * len(after)
        return Pieces(ids, spans)

    def _split(self, text: str, start: int, end: int, ids: list[int], spans: list) -> None:
        """Split the text between two special tokens as SentencePiece does."""
        segment = text[start:end]
        if not segment:
            return
        if start > 0 and not self._is_legacy:
            segment = segment.replace("▁", " ")
        processor = self._processor_at(start, segment)
        found = processor.encode(segment, return_type="offset_mapping")
        ids += found["ids"]
        spans += [(start + begin, start + end) for begin, end in found["offsets"]]

    def _processor_at(self, start: int, segment: str) -> Any:
        if start == 0 or self._is_legacy:
            return self._first
        # SentencePiece would drop this space with all others at its beginning, and its own prefix
        # is just one.
        is_dropped = self._drops_spaces and segment.startswith(" ")
        return self._prefixed if is_dropped else self._bare

    def decode(self, ids: Sequence[int]) -> str:
        """Decode tokens, without the space that was put before a text."""
        known = [i for i in ids if i < self._n_pieces or i in self._names]
        found, processor = [], self._first
        for is_added, run in itertools.groupby(known, lambda i: i in self._names):
            run = list(run)
            text = "".join(self._names[i] for i in run) if is_added else processor.decode(run)
            found.append(text)
            processor = self._bare
        return "".join(found)

    def id_of(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token]
        found = self._bare.piece_to_id(token)
        return found if self._bare.id_to_piece(found) == token else None

    def token(self, token_id: int) -> str | None:
        if token_id in self._names:
            return self._names[token_id]
        return self._bare.id_to_piece(token_id) if 0 <= token_id < self._n_pieces else None


def _processor(model: Any, *, has_prefix: bool) -> Any:
    """Load the model with or without a space before a text."""
    from sentencepiece import SentencePieceProcessor

    changed = type(model)()
    changed.CopyFrom(model)
    changed.normalizer_spec.add_dummy_prefix = has_prefix
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(changed.SerializeToString())
    return processor


def _added_tokens(model: Any, files: TokenizerFiles) -> dict[int, AddedToken]:
    """Find tokens that no text is split into, by id: the model's own, and the files'.

    One without an id, which is in no vocabulary, is none.
    """
    pieces = {piece.piece: i for i, piece in enumerate(model.pieces)}
    own = {i for i, piece in enumerate(model.pieces) if piece.type in (_UNKNOWN, _CONTROL)}
    found = {i: added_token(model.pieces[i].piece, {"special": True}) for i in sorted(own)}
    for token, given_id in files.added:
        token_id = pieces.get(token.content) if given_id is None else given_id
        if token_id is not None:
            token.special |= token_id in own  # one of the model's has no text
            found[token_id] = token
    return found


def _pattern(tokens: Iterable[AddedToken]) -> re.Pattern[str]:
    """Build the pattern that finds the leftmost added token, the longest of several."""
    parts = []
    for token in sorted(tokens, key=lambda token: -len(token.content)):
        part = re.escape(token.content)
        if token.single_word:
            part = rf"(?<![^ ]){part}(?![^ ])"
        left, right = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
        parts.append(f"{left}{part}{right}")
    return re.compile("|".join(parts))
