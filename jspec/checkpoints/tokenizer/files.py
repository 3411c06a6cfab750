"""What the files beside a vocabulary say: special tokens, options, and the chat template.

`tokenizer.json` or `tokenizer.model` alone decide how text is split. `tokenizer_config.json` names
a class too, which is not asked for: published files often name one that splits otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jspec.errors import UserError
from jspec.text_files import read_json_object, read_text

if TYPE_CHECKING:
    from tokenizers import AddedToken

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MARKS = ("{{", "{%", "{#")
"""A text without any of these is no template."""


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """The files of one checkpoint directory that may say something of its tokenizer.

    Attributes:
      folder: the directory, or a GGUF file, which says it all in `given`.
      model: contents of the model's own `config.json`, where they are known already.
      given: what `tokenizer_config.json` would say, where there is no such file.
    """

    folder: Path
    model: Mapping[str, Any] | None = None
    given: Mapping[str, Any] | None = None

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        return self._json("tokenizer_config.json") if self.given is None else self.given

    @functools.cached_property
    def special(self) -> dict[str, str]:
        """Find special tokens by role, such as `bos_token`, as chat templates want them."""
        older = self._json("special_tokens_map.json")
        found = {}
        for role in (f"{name}_token" for name in ROLES):
            text = _content(self.config[role] if role in self.config else older.get(role))
            if text:
                found[role] = text
        return found

    @property
    def model_ids(self) -> dict[str, int]:
        """Find the ids of BOS and EOS, by role, in the model's own config."""
        model = self._json("config.json") if self.model is None else self.model
        ids = {role: model.get(f"{role}_id") for role in ("bos_token", "eos_token")}
        first = {role: i[0] if isinstance(i, list) and i else i for role, i in ids.items()}
        return {role: i for role, i in first.items() if type(i) is int and i >= 0}

    @functools.cached_property
    def added(self) -> list[tuple[AddedToken, int | None]]:
        """List all tokens that are found in a text before it is split, those with an id first.

        The id is None where the files do not give it.
        """
        found: dict[str, tuple[AddedToken, int | None]] = {}
        decoder = self.config.get("added_tokens_decoder")
        for token_id, entry in (decoder if isinstance(decoder, dict) else {}).items():
            text = _content(entry)
            if text and str(token_id).isdecimal():
                found[text] = added_token(text, entry), int(token_id)
        for text, token_id in self._json("added_tokens.json").items():
            if type(token_id) is int and text:
                found.setdefault(text, (added_token(text), token_id))
        for text in (*self.special.values(), *self._additional()):
            token, _ = found.setdefault(text, (added_token(text), None))
            token.special = True
        return list(found.values())

    def _additional(self) -> list[str]:
        """List special tokens without a role."""
        older = self._json("special_tokens_map.json")
        found = []
        for key in ("additional_special_tokens", "extra_special_tokens"):
            entries = self.config.get(key, older.get(key)) or []
            entries = [entries] if isinstance(entries, str) else entries
            entries = list(entries.values()) if isinstance(entries, dict) else entries
            found += [_content(entry) for entry in (entries if isinstance(entries, list) else [])]
        return [text for text in found if text]

    @functools.cached_property
    def templates(self) -> dict[str, str]:
        """Read chat templates by name; `default` is used unless another is named."""
        folder, found = self.folder / "additional_chat_templates", {}
        if folder.is_dir():
            found = {path.stem: read_text(path) for path in sorted(folder.glob("*.jinja"))}
        if (self.folder / "chat_template.jinja").is_file():
            return found | {"default": read_text(self.folder / "chat_template.jinja")}
        given = self.config.get("chat_template")
        if given is None:
            given = self._json("chat_template.json").get("chat_template")
        return found | self._named(given)

    def _named(self, given: Any) -> dict[str, str]:
        if isinstance(given, list):
            pairs = [each for each in given if isinstance(each, dict)]
            given = {str(each.get("name")): each.get("template") for each in pairs}
        named = given if isinstance(given, dict) else {"default": given} if given else {}
        if not all(isinstance(text, str) for text in named.values()):
            raise UserError(
                f"{self.folder}: chat_template: expected Jinja text, or a list of name and template"
            )
        return named

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_json_object(path) if path.is_file() else {}


def chosen_template(given: str | None, templates: dict[str, str]) -> str | None:
    """Choose the chat template to use: the user's, or the tokenizer's.

    Args:
      given: Jinja text, a file of it, or the name of one of `templates`.

    Raises:
      UserError: a text that is none of these.
    """
    if given in templates or (given is None and "default" in templates):
        own = templates[given or "default"]
        return own if _is_template(own) else _refusing("that of the checkpoint has no Jinja in it")
    if given is None:
        if not templates:
            return None
        names = ", ".join(templates)
        return _refusing(f"there are several ({names}); give chat_template")
    if _is_template(given):
        return given
    path = Path(given)
    if not _is_file(path):
        names = f", or one of {', '.join(templates)}" if templates else ""
        if path.suffix or "/" in given:
            names += "; there is no such file"
        raise UserError(
            f"chat_template {given[:60]!r}: expected Jinja with {{{{ or {{%, or a file of it{names}"
        )
    text = read_text(path, "chat_template")
    if not _is_template(text):
        raise UserError(f"chat_template {path}: no Jinja in it; expected {{{{ or {{% somewhere")
    return text


def _is_template(text: str) -> bool:
    return any(mark in text for mark in MARKS)


def _refusing(why: str) -> str:
    """Make a template that cannot be filled in: who needs none is not disturbed."""
    return f"{{{{ raise_exception('{why}') }}}}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def _content(entry: Any) -> str | None:
    """Take the text of a token, which is a text or an object that has one."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def added_token(text: str, flags: Any = None) -> AddedToken:
    """Make a token with those flags that an object of the files sets."""
    from tokenizers import AddedToken

    given = flags if isinstance(flags, dict) else {}
    names = ("special", "lstrip", "rstrip", "single_word")
    return AddedToken(text, normalized=False, **{name: given.get(name) is True for name in names})
