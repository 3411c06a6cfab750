"""Tokenizers of directories that hold a SentencePiece `tokenizer.model` and no `tokenizer.json`.

Vicuna and the first Llamas are published so. Everything but the merges comes from `transformers`;
the merges are made here, because their order is the scores of the pieces, which the conversion in
transformers 5 takes to be the ids: runs of spaces then win over words, "a  b" becomes other tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_NORMAL = 1
_UNKNOWN = 2
_BPE = 2


def read_model(path: Path) -> Any | None:
    """The parsed file, or None where it is no SentencePiece model of byte-pair merges."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        return None
    is_bpe = model.trainer_spec.model_type == _BPE and len(model.pieces) > 0
    return model if is_bpe else None


def load_tokenizer(folder: Path, model: Any) -> Any:
    """A Llama tokenizer of `transformers` that splits text exactly as SentencePiece does.

    Args:
      folder: with `tokenizer.model`, and whatever else names special tokens or a chat template.
      model: what `read_model` made of that file.
    """
    from tokenizers.models import BPE
    from transformers import LlamaTokenizer

    options: dict[str, Any] = {"local_files_only": True, **_defaults(folder)}
    tokenizer = LlamaTokenizer.from_pretrained(folder, **options)
    backend = tokenizer.backend_tokenizer
    backend.model = BPE(
        vocab={piece.piece: i for i, piece in enumerate(model.pieces)},
        merges=ranked_merges(model),
        unk_token=next(piece.piece for piece in model.pieces if piece.type == _UNKNOWN),
        fuse_unk=True,
        byte_fallback=bool(model.trainer_spec.byte_fallback),
    )
    backend.normalizer = _normalizer(model.normalizer_spec)
    return tokenizer


def _defaults(folder: Path) -> dict[str, bool]:
    """A Llama text starts with BOS, unless `tokenizer_config.json` says otherwise."""
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {} if "add_bos_token" in said else {"add_bos_token": True}


def ranked_merges(model: Any) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the highest score first."""
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    merges = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in merges]


def _normalizer(spec: Any) -> Any | None:
    """What SentencePiece does to a text before it splits it."""
    from tokenizers import Regex, normalizers

    steps = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" +"), " "),
        ]
    return normalizers.Sequence(steps) if steps else None
