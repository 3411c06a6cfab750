"""The tokenizer inside a GGUF file: its vocabulary, and what a `tokenizer_config.json` would say.

In reading order: `gguf_config`; `gguf_vocabulary` of the two kinds that there are, byte-level BPE
("gpt2" in the file) and SentencePiece ("llama"); `gguf_pieces`, their ids; `write_gguf_tokenizer`,
which makes files of it beside a checkpoint.

A file lists the pieces of a byte-level BPE and its merges, and only names the rule that cuts a text
into words first (`tokenizer.ggml.pre`). The rules are those of the models' own `tokenizer.json`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jspec.checkpoints.gguf.file import GgufFile, open_gguf
from jspec.checkpoints.tokenizer.files import TokenizerFiles
from jspec.checkpoints.tokenizer.vocabulary import JsonVocabulary
from jspec.errors import UserError

if TYPE_CHECKING:
    from jspec.checkpoints.tokenizer.sentencepiece import SentencePieceVocabulary

MODEL = "tokenizer.ggml.model"
KINDS = ("gpt2", "llama")
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
"""Types of pieces, numbered as SentencePiece numbers them."""

_ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # as the format spells it
    "pad_token": "padding",
    "mask_token": "mask",
}
"""How a file calls the ids of special tokens."""

_logger = logging.getLogger(__name__)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordRule:
    """How a text is cut into words before its bytes are merged.

    Attributes:
      pattern: matches a word; None for GPT-2's.
      cuts_digits: every digit is a word, before anything else.
      is_nfc: the text is brought to composed characters (NFC) first.
      keeps_words: a word that is a piece is taken whole, whatever the merges give.
      adds_bos: BOS goes before a text where the file does not say.
    """

    pattern: str | None = None
    cuts_digits: bool = False
    is_nfc: bool = False
    keeps_words: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> Any:
        """Build what cuts a text into words, and them into letters that stand for bytes."""
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

        digits = [Digits(individual_digits=True)] if self.cuts_digits else []
        words = [] if self.pattern is None else [Split(Regex(self.pattern), "isolated")]
        last = ByteLevel(add_prefix_space=False, use_regex=self.pattern is None)
        return Sequence([*digits, *words, last])


_GPT2 = WordRule()
_LLAMA3 = WordRule(
    pattern=rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",
    keeps_words=True,
    adds_bos=True,
)
WORD_RULES = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": WordRule(
        pattern=rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}", is_nfc=True
    ),
    "smollm": WordRule(cuts_digits=True),
}
"""By `tokenizer.ggml.pre`."""


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """Say what the `tokenizer_config.json` of this tokenizer would; empty where there is none.

    Raises:
      UserError: a special token whose id is none.
    """
    if not has_tokenizer(file):
        return {}
    tokens = file.array("tokenizer.ggml.tokens")
    config: dict[str, Any] = {}
    for role, name in _ROLES.items():
        key = f"tokenizer.ggml.{name}_token_id"
        if key in file.metadata:
            token_id = file.integer(key)
            if not 0 <= token_id < len(tokens):
                raise UserError(f"{file.path}: {key} {token_id} is none of {len(tokens)} tokens")
            config[role] = tokens[token_id]
    for name in ("add_bos_token", "add_eos_token"):
        key = f"tokenizer.ggml.{name}"
        if key in file.metadata:
            config[name] = file.flag(key, False)
    prefix = "tokenizer.chat_template"
    templates = {
        key.removeprefix(prefix).removeprefix(".") or "default": file.text(key)
        for key in file.metadata
        if key == prefix or key.startswith(f"{prefix}.")
    }
    if templates:
        named = [{"name": name, "template": text} for name, text in templates.items()]
        config["chat_template"] = templates["default"] if [*templates] == ["default"] else named
    return config


def has_tokenizer(file: GgufFile) -> bool:
    """Tell whether a file has a tokenizer; some are written without."""
    return file.metadata.get(MODEL, "no_vocab") not in ("no_vocab", "none")


def gguf_vocabulary(
    file: GgufFile, files: TokenizerFiles
) -> JsonVocabulary | SentencePieceVocabulary:
    """Build the vocabulary.

    Args:
      files: with the file's own config.

    Raises:
      UserError: a kind of tokenizer or a word rule that is not known, or lists that do not fit.
    """
    if _kind(file) == "gpt2":
        return JsonVocabulary(_byte_level(file))
    from jspec.checkpoints.tokenizer.sentencepiece import SentencePieceVocabulary

    return SentencePieceVocabulary(_sentencepiece(file), files)


def _kind(file: GgufFile) -> str:
    kind = file.text(MODEL)
    if kind not in KINDS:
        raise UserError(
            f"{file.path}: a tokenizer of the kind {kind!r} is not supported; known: "
            f"{', '.join(KINDS)}"
        )
    return kind


def _pieces(file: GgufFile) -> tuple[list[str], list[int]]:
    """Read all pieces and their types, by id."""
    tokens, types = (file.array(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    if len(tokens) != len(types):
        raise UserError(
            f"{file.path}: {len(tokens)} tokens with {len(types)} types; download it again"
        )
    return tokens, types


def gguf_pieces(path: Path) -> dict[str, int] | None:
    """List pieces and ids; None where the file has no tokenizer. Padding is left out."""
    file = open_gguf(path)
    if not has_tokenizer(file):
        return None
    tokens, types = _pieces(file)
    return {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != _UNUSED
    }


# --- byte-level BPE ------------------------------------------------------------------------------


def _byte_level(file: GgufFile) -> Any:
    """Build the tokenizer of byte-level pieces and merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    rule, (tokens, types) = _word_rule(file), _pieces(file)
    merges = [tuple(merge.split(" ")) for merge in file.array("tokenizer.ggml.merges")]
    bad = next((merge for merge in merges if len(merge) != 2), None)
    if bad is not None:
        raise UserError(f"{file.path}: merge {' '.join(bad)!r} must be of two pieces")
    backend = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(tokens) if types[i] != _UNUSED},
            merges=merges,
            ignore_merges=rule.keeps_words,
        )
    )
    if rule.is_nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = rule.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(added)
    _put_around(backend, file, rule)
    return backend


def _word_rule(file: GgufFile) -> WordRule:
    name = file.text("tokenizer.ggml.pre", "")
    if name in ("", "default"):
        _logger.warning(
            "%s: tokenizer.ggml.pre does not name a rule that cuts texts into words: GPT-2's is "
            "used; compare some token ids with the original's",
            file.path,
        )
    if (name or "default") not in WORD_RULES:
        raise UserError(
            f"{file.path}: texts cut into words as {name!r} (tokenizer.ggml.pre) are not "
            f"supported; known: {', '.join(WORD_RULES)}"
        )
    return WORD_RULES[name or "default"]


def _put_around(backend: Any, file: GgufFile, rule: WordRule) -> None:
    """Let BOS and EOS be put around a text, where the file asks for it."""
    from tokenizers.processors import TemplateProcessing

    config = gguf_config(file)
    wanted = {"bos_token": rule.adds_bos, "eos_token": False}
    names = [
        config[role] if role in config and config.get(f"add_{role}", default) else None
        for role, default in wanted.items()
    ]
    if any(names):
        single = [name for name in (names[0], "$A", names[1]) if name]
        special = [(name, backend.token_to_id(name)) for name in names if name]
        backend.post_processor = TemplateProcessing(single=single, special_tokens=special)


# --- SentencePiece -------------------------------------------------------------------------------


def _sentencepiece(file: GgufFile) -> Any:
    """Build the SentencePiece model, of the BPE kind with byte fallback, that the file is of."""
    from sentencepiece import sentencepiece_model_pb2

    tokens, types = _pieces(file)
    scores = file.array("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise UserError(
            f"{file.path}: {len(tokens)} tokens with {len(scores)} scores; download it again"
        )
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    for token, score, kind in zip(tokens, scores, types, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    spec = model.trainer_spec
    spec.model_type, spec.byte_fallback = spec.BPE, _BYTE in types
    names = gguf_config(file)
    for role in ("bos", "eos", "unk", "pad"):
        if f"{role}_token" in names:
            setattr(spec, f"{role}_piece", names[f"{role}_token"])
    rule = model.normalizer_spec
    rule.name, rule.escape_whitespaces = "identity", True
    rule.add_dummy_prefix = file.flag("tokenizer.ggml.add_space_prefix", True)
    rule.remove_extra_whitespaces = file.flag("tokenizer.ggml.remove_extra_whitespaces", False)
    return model


# --- beside a checkpoint -------------------------------------------------------------------------


def gguf_tokenizer_digest(path: Path) -> str | None:
    """Digest the vocabulary: SHA-256, hexadecimal; None where the file has no tokenizer."""
    metadata = open_gguf(path).metadata
    keys = ("model", "pre", "tokens", "token_type", "scores", "merges")
    said = {key: metadata.get(f"tokenizer.ggml.{key}") for key in keys}
    if said["model"] is None:
        return None
    return hashlib.sha256(json.dumps(said).encode("utf-8")).hexdigest()


def write_gguf_tokenizer(path: Path, directory: Path) -> None:
    """Write the tokenizer as files of a checkpoint directory."""
    file = open_gguf(path)
    if not has_tokenizer(file):
        return
    if _kind(file) == "gpt2":
        _byte_level(file).save(str(directory / "tokenizer.json"))
    else:
        (directory / "tokenizer.model").write_bytes(_sentencepiece(file).SerializeToString())
    text = json.dumps(gguf_config(file), indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
