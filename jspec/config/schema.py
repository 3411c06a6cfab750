"""What may be asked, and of which models: the configs that commands share.

In reading order: what one prompt asks (`Filters`, `Settings`) and how it is read (`Reading`), which
a line of a prompts file may both say (`LineConfig`); a target and the drafters that go with it
(`TargetConfig`, `DrafterConfig`); one run of `python -m jspec.infer` (`InferConfig`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from jspec.config.fields import MAX_ROWS, MAX_TOKENS, Config, count, digest_field, field, seed_field
from jspec.law import TEMPERATURES, is_temperature


class Filters(Config):
    """Which tokens may be drawn."""

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

    @property
    def filters(self) -> dict[str, Any]:
        """The three of them by name."""
        return {name: getattr(self, name) for name in Filters.model_fields}


class Settings(Filters):
    """What one prompt asks."""

    max_new_tokens: int = count(256, "new tokens at most, the stop token included")
    temperature: float = field(0.0, "0 is greedy", TEMPERATURES)
    seed: int = seed_field("names the noise; one prompt, seed and sample are one text")
    sample: int = seed_field("number of the request, for several texts of one seed")
    stop: list[Annotated[str, Field(min_length=1)]] = field(
        [],
        "texts that end the output; they are left out of it, and may be special tokens",
        "a list of non-empty texts",
    )
    stop_ids: list[Annotated[int, Field(ge=0, le=MAX_TOKENS)]] = field(
        [],
        "tokens that end the output, beside the target's own",
        f"a list of token ids, each from 0 to {MAX_TOKENS}",
    )

    @property
    def sampling(self) -> dict[str, Any]:
        """All but the stops, by name."""
        return self.model_dump(include=set(Settings.model_fields) - {"stop", "stop_ids"})

    @field_validator("temperature")
    @classmethod
    def _has_a_law(cls, value: float) -> float:
        if not is_temperature(value):
            raise ValueError("out of range")
        return value


class Reading(Config):
    """How a prompt becomes tokens, and whether its answer goes on past the target's end."""

    system: str | None = field(
        None, "system message, for targets with a chat template", "a text", is_text=True
    )
    raw: bool = field(False, "give prompts as they are, without the chat template", "true or false")
    ignore_eos: bool = field(False, "go on past the target's stop tokens", "true or false")


class LineConfig(Settings, Reading):
    """What a line of a prompts file may carry, where it wins over the run's config."""


class MeshConfig(Config):
    """Devices along each axis."""

    data: int = count(1, "rows")
    layer: int = count(1, "groups of the drafter's layers")
    tensor: int = count(1, "heads and widths")


class DrafterConfig(Config):
    """A drafter: its method, its weights, its options."""

    drafter: str = field("none", "what proposes tokens", "the name of a drafter", is_text=True)
    drafter_path: str | None = field(
        None,
        "directory, GGUF file or hub id of the drafter's weights",
        "a directory, a .gguf file or a hub id",
        is_text=True,
        min_length=1,
    )
    drafter_options: dict[str, Any] = field({}, "options of the drafter", "a mapping")


class TargetConfig(Reading):
    """A target and what goes with it, for every command that runs one."""

    target: str | None = field(
        None,
        "Hugging Face directory, GGUF file or hub id of the target",
        "a directory, a .gguf file or a hub id",
        is_text=True,
        min_length=1,
    )
    target_digest: str | None = digest_field(
        "digest of the target's weights, which refuses any others"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = field(
        "float32",
        "of weights and cache; auto is the fastest that the devices are good at",
        "auto, float32 or bfloat16",
        is_text=True,
    )
    weights: Literal["bfloat16", "int8", "fp8", "int4"] | None = field(
        None,
        "type of the matrices where it is not dtype; int8, fp8 and int4 change what is said",
        "bfloat16, int8, fp8 or int4",
        is_text=True,
    )
    mesh: MeshConfig = field(
        MeshConfig(), "devices along each axis", "axes such as data=1,layer=1,tensor=2"
    )
    max_length: int | None = count(
        None, "most tokens of a text, prompt included; the target's context if not given", low=2
    )
    chat_template: str | None = field(
        None,
        "Jinja chat template or a file of it, where the tokenizer has none or another is wanted",
        "a Jinja template",
        is_text=True,
        min_length=1,
    )
    drafters: dict[str, DrafterConfig] = field(
        {},
        "drafters that go with the target, by a name that `drafter` may take",
        "a mapping from names to drafter, drafter_path and drafter_options",
    )


ROUNDS_PER_CHUNK = 8
"""Rounds a dispatch, where nothing else is asked for."""


class InferConfig(Settings, DrafterConfig, TargetConfig):
    """One run of `python -m jspec.infer`; every field can be given as `--set key=value`."""

    batch_size: int = count(1, "rows decoded together", high=MAX_ROWS)
    rounds_per_chunk: int = count(
        ROUNDS_PER_CHUNK, "rounds a dispatch; text is shown and rows are refilled between them"
    )
    rule: Literal["walk", "rejection"] = field(
        "walk", "how a draft is accepted", "walk or rejection", is_text=True
    )
    prompt: list[Annotated[str, Field(min_length=1)]] = field(
        [], "prompts, where no others are given", "a list of non-empty texts"
    )
    trace: bool = field(False, "tell where every token came from", "true or false")
    compare: bool = field(
        False, "also decode plainly, and compare texts and speed", "true or false"
    )


def drafters_of(
    config: InferConfig, names: Sequence[str] | None = None
) -> dict[str, DrafterConfig]:
    """Drafters by name: those asked for, else all that go with the target, else the one it uses.

    A name is one of `config.drafters`, or a method that needs no weights, such as prompt-lookup.
    """
    own = DrafterConfig(**{name: getattr(config, name) for name in DrafterConfig.model_fields})
    if names is None:
        return dict(config.drafters) or {own.drafter: own}
    return {
        name: config.drafters.get(name)
        or (own if name == own.drafter else DrafterConfig(drafter=name))
        for name in names
    }
