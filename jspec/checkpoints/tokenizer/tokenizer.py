"""Text in: tokenizers, conversations through chat templates, and texts as token ids.

In reading order: `Tokenizer`, how it is loaded, and the import of `transformers`.
`jspec.infer.text_stream` has text that grows token by token.

`tokenizer.json`, or else `tokenizer.model`, decides how text is split, whatever class
`tokenizer_config.json` names. Special tokens and the chat template come from the config. A GGUF
file has all of it inside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jspec.checkpoints.gguf.file import is_gguf, open_gguf
from jspec.checkpoints.tensor_files import check_not_pointer
from jspec.checkpoints.tokenizer.files import TokenizerFiles, chosen_template
from jspec.checkpoints.tokenizer.gguf import gguf_config, gguf_vocabulary, has_tokenizer
from jspec.checkpoints.tokenizer.vocabulary import JsonVocabulary, Pieces
from jspec.errors import UserError
from jspec.text_files import read_json_object, read_text

if TYPE_CHECKING:
    from jspec.checkpoints.tokenizer.sentencepiece import SentencePieceVocabulary

    Vocabulary = JsonVocabulary | SentencePieceVocabulary

Messages = Sequence[Mapping[str, str]]
"""A conversation: `{"role": "user", "content": "..."}` and so on, the oldest first."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
"""Files of which one is read, the first that is there."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary, its special tokens and its chat template.

    Attributes:
      vocabulary: splits texts.
      names: special tokens by role: `bos_token`, `eos_token` and so on; those that there are.
      template: Jinja for conversations; None where neither the tokenizer nor the user has one.
      is_own_template: whether the user gave it.
      special_ids: tokens that have no text.
    """

    vocabulary: Vocabulary
    names: Mapping[str, str]
    template: str | None
    is_own_template: bool
    special_ids: frozenset[int]

    @property
    def has_chat_template(self) -> bool:
        return self.template is not None

    @property
    def bos_id(self) -> int | None:
        return self.id_of(self.names["bos_token"]) if "bos_token" in self.names else None

    @property
    def eos_id(self) -> int | None:
        return self.id_of(self.names["eos_token"]) if "eos_token" in self.names else None

    @functools.cached_property
    def special_names(self) -> tuple[str, ...]:
        """Name the tokens that have no text."""
        return tuple(self.token(i) for i in sorted(self.special_ids))

    @property
    def n_ids(self) -> int:
        """One more than the largest id."""
        return self.vocabulary.n_ids

    @property
    def byte_ids(self) -> frozenset[int]:
        """Tokens that stand for one byte each, of vocabularies with byte fallback."""
        return self.vocabulary.byte_ids

    def encode(self, text: str) -> tuple[int, ...]:
        """Encode a plain text as its model wants it: with BOS where the tokenizer adds one.

        A text that begins with BOS itself, because a template was filled in elsewhere, gets no
        other.
        """
        return tuple(self._with_one_bos(self.pieces([text], is_whole=True)[0]).ids)

    def encode_chat(self, messages: Messages) -> tuple[int, ...]:
        """Encode a conversation whose next turn is the model's.

        Raises:
          UserError: no template, or one that refuses these messages.
        """
        return tuple(self.chat_pieces([self.chat_text(messages)])[0].ids)

    def chat_text(self, messages: Messages, *, is_asking: bool = True) -> str:
        """Write a conversation as the chat template does.

        Args:
          is_asking: whether the next turn is the model's, so that its beginning is written too.

        Raises:
          UserError: no template, or one that refuses these messages.
        """
        if self.template is None:
            raise UserError(
                "the tokenizer has no chat template: expected a single turn; give one turn a line, "
                "or a template as chat_template=..."
            )
        try:
            return _filled(self.template, messages, is_asking=is_asking, names=self.names)
        except Exception as error:  # a template is a program: it raises what it likes
            raise UserError(
                f"the chat template cannot be filled in: {_first_line(error)}"
            ) from None

    def chat_pieces(self, texts: Sequence[str]) -> list[Pieces]:
        """Encode what `chat_text` wrote, in decoding and in training.

        The tokenizer's template writes BOS itself where its model wants one. One that the user
        gave may leave it out, and then gets what any text gets.
        """
        return [self._begun(pieces) for pieces in self.pieces(texts)]

    def _begun(self, pieces: Pieces) -> Pieces:
        before = self.vocabulary.before
        if self.is_own_template and tuple(pieces.ids[: len(before)]) != before:
            pieces = Pieces([*before, *pieces.ids], [(0, 0)] * len(before) + pieces.spans)
        return self._with_one_bos(pieces)

    def pieces(self, texts: Sequence[str], *, is_whole: bool = False) -> list[Pieces]:
        """Split some texts into tokens, each with the characters that it stands for.

        Args:
          is_whole: add what belongs around a text, such as BOS; else they are taken as they stand.

        Raises:
          UserError: half of a surrogate pair, which is no text.
        """
        try:
            "".join(texts).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                "not valid Unicode: half of a surrogate pair; give whole characters"
            ) from None
        return self.vocabulary.encode(texts, is_whole=is_whole)

    def _with_one_bos(self, pieces: Pieces) -> Pieces:
        """Drop the second BOS, and all after it, where a text begins with several."""
        bos = list(self.vocabulary.before) or [i for i in (self.bos_id,) if i is not None]
        n, extra = len(bos), 0
        while n and pieces.ids[extra : extra + 2 * n] == bos * 2:
            extra += n
        return Pieces(pieces.ids[extra:], pieces.spans[extra:])

    def decode(self, ids: Sequence[int], *, with_special: bool = False) -> str:
        """Decode tokens, special ones left out unless wanted; nothing is cleaned up."""
        if not with_special:
            ids = [i for i in ids if i not in self.special_ids]
        return self.vocabulary.decode(ids)

    def id_of(self, token: str) -> int | None:
        """Find a token by its name; None where there is no such token."""
        return self.vocabulary.id_of(token)

    def token(self, token_id: int) -> str:
        """Name one token as the vocabulary does, for tables."""
        return str(self.vocabulary.token(token_id))


def _filled(template: str, messages: Messages, *, is_asking: bool, names: Mapping[str, str]) -> str:
    with quiet_transformers():
        from transformers.utils.chat_template_utils import render_jinja_template
    variables: dict[str, Any] = dict(names)
    texts, _ = render_jinja_template(
        [[dict(message) for message in messages]],
        chat_template=template,
        add_generation_prompt=is_asking,
        **variables,
    )
    return str(texts[0])


def load_tokenizer(
    folder: Path | None,
    chat_template: str | None = None,
    *,
    model: Mapping[str, Any] | None = None,
) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint directory or GGUF file; None where it has none.

    Args:
      chat_template: Jinja, a file of it, or the name of one of the tokenizer's templates.
      model: contents of the model's `config.json`, where it was read already.

    Raises:
      UserError: files that are there and cannot be read.
    """
    files = None if folder is None else _files(folder, model)
    if folder is None or files is None:
        return None
    added = files.added  # whose errors name their file
    try:
        vocabulary = _load(folder, files)
        special = [vocabulary.id_of(token.content) for token, _ in added if token.special]
    except UserError:
        raise
    except Exception as error:  # tokenizer files are read by three libraries, each with its errors
        raise UserError(
            f"{folder}: the tokenizer cannot be read ({_first_line(error)}); restore its files, or "
            "remove them and give prompt_tokens"
        ) from None
    tokenizer = Tokenizer(
        vocabulary=vocabulary,
        names=_special_names(vocabulary, files),
        template=chosen_template(chat_template, files.templates),
        is_own_template=chat_template is not None and chat_template not in files.templates,
        special_ids=vocabulary.special_ids | {i for i in special if i is not None},
    )
    _tell_what_is_overruled(tokenizer, files)
    return tokenizer


def _files(folder: Path, model: Mapping[str, Any] | None) -> TokenizerFiles | None:
    """Find what says something of a tokenizer; None where there is none."""
    if is_gguf(folder):
        file = open_gguf(folder)
        return TokenizerFiles(folder, model, gguf_config(file)) if has_tokenizer(file) else None
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    for name in (*TOKENIZER_FILES, "tokenizer_config.json"):
        check_not_pointer(folder / name)
    return TokenizerFiles(folder, model)


def _special_names(vocabulary: Vocabulary, files: TokenizerFiles) -> dict[str, str]:
    """Find names by role: in the tokenizer's files, the vocabulary, the model's config by id.

    A role that `tokenizer_config.json` sets to null has no token.
    """
    by_id = {role: vocabulary.token(token_id) or "" for role, token_id in files.model_ids.items()}
    found = by_id | vocabulary.names | files.special
    empty = files.config.keys() - files.special.keys()
    return {role: name for role, name in found.items() if name and role not in empty}


def _load(folder: Path, files: TokenizerFiles) -> Vocabulary:
    if is_gguf(folder):
        return gguf_vocabulary(open_gguf(folder), files)
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer as Backend

        return JsonVocabulary(Backend.from_str(read_text(folder / "tokenizer.json")))
    if (folder / "tokenizer.model").is_file():
        from jspec.checkpoints.tokenizer.sentencepiece import SentencePieceVocabulary, read_model

        return SentencePieceVocabulary(read_model(folder / "tokenizer.model"), files)
    return JsonVocabulary(_backend_of_class(folder, files))


def _backend_of_class(folder: Path, files: TokenizerFiles) -> Any:
    """Of `vocab.json` or `tekken.json`, which do not tell alone how a text is split.

    The class that the config names says it, if it reads these files: one that does not, such as
    Llama's, makes a vocabulary of nothing. Byte-level pieces are then split as GPT-2 does.
    """
    path = folder / "vocab.json"
    pieces = read_json_object(path) if path.is_file() else {}
    failure = None
    with quiet_transformers():
        from transformers import AutoTokenizer

        try:
            hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            if _has_pieces(hf.backend_tokenizer, pieces):
                return hf.backend_tokenizer
        except Exception as error:  # as above
            failure = error
        if (folder / "merges.txt").is_file() and _is_byte_level(pieces):
            return _read_as_gpt_2(folder, files, pieces)
    if failure is not None:
        raise failure
    raise UserError(
        f"{folder}: the class that tokenizer_config.json names does not read vocab.json; correct "
        "tokenizer_class, or add a tokenizer.json"
    )


def _read_as_gpt_2(folder: Path, files: TokenizerFiles, pieces: Mapping[str, int]) -> Any:
    """Read byte-level pieces of no known class; none of them is given another id.

    Raises:
      UserError: added tokens whose ids would be others.
    """
    from transformers import GPT2Tokenizer

    _logger.warning(
        f"{folder}: vocab.json and merges.txt are read as GPT-2's, since no tokenizer_class that "
        "reads them is named; check it, or add a tokenizer.json"
    )
    by_id = {token_id: piece for piece, token_id in pieces.items()}
    roles: dict[str, Any] = {"bos_token": None, "eos_token": None, "unk_token": None}
    roles |= {role: by_id.get(token_id) for role, token_id in files.model_ids.items()}
    roles |= files.special
    hf = GPT2Tokenizer.from_pretrained(str(folder), local_files_only=True, **roles)
    for token, token_id in files.added:
        given = hf.backend_tokenizer.token_to_id(token.content)
        if token_id is not None and token_id != given:
            raise UserError(
                f"{folder}: the added token {token.content!r} has id {token_id}, which would "
                f"be {given}; add a tokenizer.json"
            )
    return hf.backend_tokenizer


def _has_pieces(backend: Any, pieces: Mapping[str, int]) -> bool:
    """Whether a tokenizer has all of these, under the same ids."""
    known = backend.get_vocab(with_added_tokens=True)
    return all(known.get(piece) == token_id for piece, token_id in pieces.items())


def _is_byte_level(pieces: Mapping[str, int]) -> bool:
    """Whether these are pieces as GPT-2's: all bytes are there, and no word ends are marked."""
    from tokenizers.pre_tokenizers import ByteLevel

    has_bytes = all(byte in pieces for byte in ByteLevel.alphabet())
    return has_bytes and not any(piece.endswith("</w>") for piece in pieces)


def _tell_what_is_overruled(tokenizer: Tokenizer, files: TokenizerFiles) -> None:
    """Warn where `tokenizer_config.json` wants what `tokenizer.json` does not do."""
    if not (files.folder / "tokenizer.json").is_file():
        return
    around = {"bos": tokenizer.vocabulary.before, "eos": tokenizer.vocabulary.after}
    for role, ids in around.items():
        wanted = files.config.get(f"add_{role}_token")
        if isinstance(wanted, bool) and wanted != bool(ids):
            does = "adds" if ids else "does not add"
            _logger.warning(
                f"{files.folder}: tokenizer.json {does} {role.upper()} to a text, and decides; "
                f"add_{role}_token of tokenizer_config.json is not obeyed"
            )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep advice off the terminal: jspec says what matters itself."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers.utils import logging as their_logging

    before = their_logging.get_verbosity()
    their_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        their_logging.set_verbosity(before)


def import_transformers_without_torch() -> None:
    """Spare a second of start-up where torch is installed; tokenizers do not need it.

    For a process of our own only: `transformers` then believes for good that torch is missing.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python spells "not there"
    try:
        import transformers

        _ = transformers.AutoTokenizer
    finally:
        del sys.modules["torch"]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
