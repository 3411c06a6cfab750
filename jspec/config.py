"""Typed configs read from YAML, checked, with errors of one line.

In reading order: what may be asked (`Settings`, `InferConfig`), where configs are found, how a file
is read, and how layers (a file, `--set`, flags, a line of a prompts file) become one checked value.

A layer is `(origin, mapping)`; later layers win, and the origin is named when a value is refused.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from jspec.errors import UserError
from jspec.law import MIN_TEMPERATURE

Layer = tuple[str, Mapping[str, Any]]

MAX_SEED = 2**32 - 1
MAX_TOKENS = 2**31 - 1


def field(default: Any, help_: str, expected: str, *, is_text: bool = False, **limits) -> Any:
    """A config field.

    Args:
      help_: one line, the help of its flag.
      expected: what an error says was expected.
      is_text: the command line's words are taken as they stand: `--set target=7` is a text.
      limits: pydantic's, such as `ge=1`.
    """
    extra = {"expected": expected, "is_text": is_text}
    return Field(default, description=help_, json_schema_extra=extra, **limits)


def count(default: int | None, help_: str, low: int = 1) -> Any:
    expected = f"a whole number of at least {low}"
    return field(default, help_, expected, ge=low, le=MAX_TOKENS)


def seed_field(help_: str) -> Any:
    return field(0, help_, f"a whole number from 0 to {MAX_SEED}", ge=0, le=MAX_SEED)


def digest_field(help_: str) -> Any:
    return field(None, help_, "64 hexadecimal digits", is_text=True, pattern="^[0-9a-f]{64}$")


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# --- what may be asked ---------------------------------------------------------------------------


class Settings(Config):
    """What one prompt asks; a line of a prompts file may carry any of these."""

    max_new_tokens: int = count(256, "new tokens at most, the stop token included")
    temperature: float = field(
        0.0, "0 is greedy", f"0 (greedy) or a number of at least {MIN_TEMPERATURE}"
    )
    top_k: int = count(0, "keep the K likeliest tokens; 0 is off", low=0)
    top_p: float = field(
        1.0, "keep the smallest set of this mass; 1 is off", "a number in (0, 1]", gt=0, le=1
    )
    min_p: float = field(
        0.0,
        "keep tokens of at least this share of the likeliest one's probability; 0 is off",
        "a number in [0, 1)",
        ge=0,
        lt=1,
    )
    seed: int = seed_field("names the noise; one prompt, seed and sample are one text")
    sample: int = seed_field("number of the request, for several texts of one seed")

    @field_validator("temperature")
    @classmethod
    def _is_zero_or_large_enough(cls, value: float) -> float:
        if value != 0 and value < MIN_TEMPERATURE:
            raise ValueError("out of range")
        return value


class MeshConfig(Config):
    """Devices along each axis."""

    data: int = count(1, "rows")
    layer: int = count(1, "groups of the drafter's layers")
    tensor: int = count(1, "heads and widths")


class InferConfig(Settings):
    """One run of `python -m jspec.infer`; every field can be given as `--set key=value`."""

    target: str | None = field(
        None,
        "Hugging Face directory or hub id of the target",
        "a directory or a hub id",
        is_text=True,
        min_length=1,
    )
    target_digest: str | None = digest_field(
        "digest of the target's weights, which refuses any others"
    )
    drafter: str = field("none", "what proposes tokens", "the name of a drafter", is_text=True)
    drafter_path: str | None = field(
        None,
        "directory or hub id of the drafter's weights",
        "a directory or a hub id",
        is_text=True,
        min_length=1,
    )
    drafter_options: dict[str, Any] = field({}, "options of the drafter", "a mapping")
    dtype: Literal["float32", "bfloat16"] = field(
        "float32", "of weights and cache", "float32 or bfloat16", is_text=True
    )
    mesh: MeshConfig = field(
        MeshConfig(), "devices along each axis", "axes such as data=1,layer=1,tensor=2"
    )
    batch_size: int = count(1, "rows decoded together")
    max_length: int | None = count(
        None, "most tokens of a text, prompt included; the target's context if not given", low=2
    )
    rule: Literal["walk", "rejection"] = field(
        "walk", "how a draft is accepted", "walk or rejection", is_text=True
    )
    stop: list[Annotated[str, Field(min_length=1)]] = field(
        [], "texts that end the output; they are left out of it", "a list of non-empty texts"
    )
    ignore_eos: bool = field(False, "go on past the target's stop tokens", "true or false")
    system: str | None = field(
        None, "system message, for targets with a chat template", "a text", is_text=True
    )
    raw: bool = field(False, "give prompts as they are, without the chat template", "true or false")
    chat_template: str | None = field(
        None,
        "Jinja chat template, where the tokenizer has none or another is wanted",
        "a Jinja template",
        is_text=True,
        min_length=1,
    )
    prompt: list[Annotated[str, Field(min_length=1)]] = field(
        [], "prompts, where no others are given", "a list of non-empty texts"
    )
    trace: bool = field(False, "tell where every token came from", "true or false")
    compare: bool = field(
        False, "also decode plainly, and compare texts and speed", "true or false"
    )


# --- where configs are ---------------------------------------------------------------------------


def config_folders() -> tuple[Path, ...]:
    """Folders with ready configs: of an installed wheel, of a checkout."""
    package = Path(__file__).resolve().parent
    return tuple(
        folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()
    )


def config_names() -> tuple[str, ...]:
    """Names of the ready configs, sorted."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in config_folders()
        for path in folder.rglob("*.yaml")
    }
    return tuple(sorted(found))


def runnable_names(*, is_training: bool) -> tuple[str, ...]:
    """Names of the ready configs that `jspec.train`, or `jspec.infer`, runs."""

    def trains(name: str) -> bool:
        # The line alone: every start of a command asks this, and parsing all files takes long.
        return re.search(r"^kind:", find_config(name).read_text("utf-8"), re.MULTILINE) is not None

    return tuple(name for name in config_names() if trains(name) == is_training)


def find_config(name_or_path: str) -> Path:
    """The file behind a path, or behind the name of a ready config (`vicuna`, `vicuna.yaml`)."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    name = re.sub(r"\.ya?ml$", "", name_or_path)
    for folder in config_folders():
        if name in config_names() and (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    if path.is_dir():
        raise UserError(f"config {name_or_path!r} is a directory; expected a YAML file")
    hint = _hint(name, config_names())
    raise UserError(f"config {name_or_path!r} is neither a file nor a known name; {hint}")


# --- reading -------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice and reads `1e-3` as a number, as YAML 1.2 does."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if isinstance(key, str) and keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping with text keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: not UTF-8 at byte {error.start}; expected YAML") from None
    except OSError as error:
        raise UserError(f"config {path}: cannot be read ({error.strerror})") from None
    try:
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"config {path}: broken YAML, {_where(error)}") from None
    if data is None:
        raise UserError(f"config {path} is empty; expected keys such as `target: DIR`")
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"config {path}: expected keys such as `target: DIR`, given {shown(data)}")
    return data


def parse_scalar(text: str) -> Any:
    """A value given on the command line, read as YAML; what YAML cannot read is a text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def parse_sets(settings: Iterable[str], model: type[BaseModel] | None = None) -> dict[str, Any]:
    """`key=value` and `key.inner=value` into a nested mapping, for `InferConfig` if not told."""
    merged: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise UserError(f"--set {setting}: expected key=value, as in --set temperature=0.7")
        value = parse_text(model or InferConfig, parts[0], text)
        for part in reversed(parts[1:]):
            value = {part: value}
        merged = _merge(merged, {parts[0]: value})
    return merged


def parse_text(model: type[BaseModel], name: str, text: str) -> Any:
    """What the command line says for a field; checked later. What YAML cannot read is a text."""
    if _extra(model, name).get("is_text"):
        return text
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def parse_mesh(text: str) -> dict[str, Any] | str:
    """`data=1,tensor=2` into a mapping; anything else is handed back to be refused."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(equals and name.strip() for name, equals, _ in pairs):
        return text
    return {name.strip(): parse_text(MeshConfig, name, value) for name, _, value in pairs}


# --- layers into one value -----------------------------------------------------------------------

Model = TypeVar("Model", bound=BaseModel)


def resolve(model: type[Model], layers: Iterable[Layer]) -> Model:
    """Merges the layers, the later ones winning, and checks the result.

    Raises:
      UserError: one line naming the origin, the key, what was expected and what was given.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in layers:
        values = {key: _expanded(key, value) for key, value in values.items()}
        merged = _merge(merged, values)
        origins.update(dict.fromkeys(values, origin))
    try:
        return model.model_validate(merged)
    except pydantic.ValidationError as error:
        raise UserError(_refusal(model, error, origins)) from None


def _expanded(key: str, value: Any) -> Any:
    """The mesh may be written as one text, and one stop text or prompt without a list."""
    if key == "mesh" and isinstance(value, str):
        return parse_mesh(value)
    if key in ("stop", "prompt") and isinstance(value, str):
        return [value]
    return value


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            value = _merge(dict(merged[key]), value)
        merged[key] = value
    return merged


def _refusal(
    model: type[BaseModel], error: pydantic.ValidationError, origins: Mapping[str, str]
) -> str:
    """What is wrong with each refused key, in one line."""
    problems: dict[str, None] = {}
    for item in error.errors():
        origin = origins.get(str(item["loc"][0]), "") if item["loc"] else ""
        problems[f"{origin}: {_problem(model, item)}" if origin else _problem(model, item)] = None
    shown = list(problems)[:3]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def _problem(model: type[BaseModel], item: Any) -> str:
    """One refused key: unknown, or what was expected and what was given."""
    if not item["loc"]:  # a relation between fields
        return f"expected {item['ctx']['error']}"
    names = [str(part) for part in item["loc"]]
    key, full = names[0], names[0]
    section = model.model_fields[key].annotation if key in model.model_fields else None
    if len(names) > 1 and isinstance(section, type) and issubclass(section, BaseModel):
        model, key, full = section, names[1], f"{key}.{names[1]}"
    if item["type"] == "extra_forbidden":
        known = tuple(model.model_fields)
        return f"unknown key {full!r}; {_hint(key, known)}"
    expected = _extra(model, key).get("expected", item["msg"])
    return f"{full}: expected {expected}, given {shown(item['input'])}"


def _extra(model: type[BaseModel], name: str) -> dict[str, Any]:
    known = model.model_fields.get(name)
    extra = known.json_schema_extra if known is not None else None
    return extra if isinstance(extra, dict) else {}


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that this one was likely meant to be."""
    plain = word.lower().replace("-", "_")
    near = difflib.get_close_matches(plain, list(known), n=1, cutoff=cutoff)
    return near[0] if near else None


def _hint(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(known) or 'none'}"


def shown(value: Any) -> str:
    """A value as an error shows it: short, on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
