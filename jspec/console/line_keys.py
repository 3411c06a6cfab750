"""Keys of a line of a prompts file: which are obeyed, which are refused, which are passed over.

In reading order: what other formats call our keys and what they ask beyond them, `find_kind`, which
says what a line holds, and `check_keys`. What changes a text is never dropped in silence. Keys that
nobody knows belong to the data set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jspec.arguments import nearest, shown
from jspec.config import InferConfig, LineConfig
from jspec.errors import UserError

KINDS = ("turns", "prompt", "prompt_tokens", "messages")
"""A line has one of these."""

OBEYED = tuple(LineConfig.model_fields)

_OF_THE_RUN = tuple(set(InferConfig.model_fields) - {*OBEYED, *KINDS, "target"})

_CALLED = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_output_tokens": "max_new_tokens",
    "max_gen_len": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "stop_token_ids": "stop_ids",
    "eos_token_id": "stop_ids",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_sequence": "stop",
    "random_seed": "seed",
    "input_ids": "prompt_tokens",
    "prompt_token_ids": "prompt_tokens",
}
"""What other formats call our keys."""

_PROMPTS = ("text", "question", "instruction", "query", "input", "inputs", "content")
"""What data sets call a prompt."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    name: neutral
    for neutral, names in (
        (
            (0,),
            "presence_penalty frequency_penalty diversity_penalty no_repeat_ngram_size "
            "epsilon_cutoff eta_cutoff mirostat top_a min_tokens min_new_tokens min_length "
            "top_logprobs prompt_logprobs",
        ),
        (
            (),
            "do_sample truncate_prompt_tokens truncate model guided_json guided_regex "
            "guided_choice guided_grammar grammar json_schema lora_request adapter_id",
        ),
        (
            (1,),
            "n best_of num_return_sequences num_beams num_beam_groups repetition_penalty "
            "encoder_repetition_penalty length_penalty typical_p tfs_z guidance_scale",
        ),
        (
            (False,),
            "use_beam_search watermark early_stopping include_stop_str_in_output "
            "continue_final_message details decoder_input_details return_full_text echo stream",
        ),
        (
            ({},),
            "logit_bias chat_template_kwargs extra_body parameters sampling_params "
            "generation_config",
        ),
        (([],), "bad_words bad_words_ids tools functions"),
        ((True,), "skip_special_tokens add_special_tokens add_generation_prompt"),
        (("none",), "tool_choice function_call"),
        ((False, 0), "logprobs"),
        (("",), "suffix"),
        (({"type": "text"},), "response_format"),
    )
    for name in names.split()
}
"""Keys of well-known request formats that nothing here does, and values that ask for nothing."""

LAST_ANSWER = "the assistant's last message"
"""In place of a key, for what is said to be left out of `messages`."""

_LIKELY_MISSPELT = 0.8


def find_kind(record: Mapping[str, Any], where: str) -> str:
    """The one of `KINDS` that a line has; a key with null is not there.

    Raises:
      UserError: none or several; what the line looks like instead is named.
    """
    kinds = [kind for kind in KINDS if record.get(kind) is not None]
    if len(kinds) == 1:
        return kinds[0]
    empty = [f"{kind}: null" for kind in KINDS if kind in record]
    given = " and ".join(kinds or empty) or f"keys {shown(list(record))}"
    raise UserError(
        f"{where}: expected one of {', '.join(KINDS)}, given {given}"
        + ("" if kinds or empty else _remedy(record))
    )


def _remedy(record: Mapping[str, Any]) -> str:
    for key, value in record.items():
        if isinstance(value, Mapping) and any(kind in value for kind in KINDS):
            return f"; a request inside {key!r} is not looked for: let the line be what is in it"
    if "conversations" in record:
        return "; write conversations as messages of role and content"
    named = [key for key in record if key.lower() in (*KINDS, *_PROMPTS)]
    if {"instruction", "input"} <= record.keys() and record["input"]:
        return "; join instruction and input into one text, and call it 'prompt'"
    return f"; rename {named[0]!r} to 'prompt', if it is to be answered" if named else ""


def check_keys(record: Mapping[str, Any], config: InferConfig, where: str) -> tuple[str, ...]:
    """The keys that ask for what is not done, and are passed over; the caller tells of them.

    Null asks for nothing, and `stopSequences` is another way to write `stop_sequences`.

    Raises:
      UserError: a setting of the whole run that differs, one by another name, or one misspelt.
    """
    passed_over = []
    for key, value in record.items():
        name = re.sub(r"(?<=[a-z])(?=[A-Z])|-", "_", key).lower()
        if key in OBEYED or key in KINDS or key == "id":
            continue
        if key in _OF_THE_RUN:
            _check_same(key, value, config, where)
        elif value is None:
            continue
        elif name in _CALLED:
            raise UserError(f"{where}: {key!r} is called {_CALLED[name]!r} here; rename it")
        elif name in _NEUTRAL:
            if not _asks_nothing(name, value, record, config):
                passed_over.append(key)
        elif key == "target":
            passed_over += [key] if value != config.target else []
        elif near := nearest(name, OBEYED, _LIKELY_MISSPELT):
            raise UserError(f"{where}: unknown key {key!r}; did you mean {near!r}?")
    return tuple(passed_over)


def _asks_nothing(name: str, value: Any, record: Mapping[str, Any], config: InferConfig) -> bool:
    if name == "do_sample":
        temperature = record.get("temperature")
        return value is ((config.temperature if temperature is None else temperature) != 0)
    return any(_is(value, each) for each in _NEUTRAL[name])


def _check_same(key: str, value: Any, config: InferConfig, where: str) -> None:
    own = config.model_dump(mode="json")[key]
    if value != own:
        raise UserError(
            f"{where}: {key!r} is a setting of the whole run ({shown(own)}), given {shown(value)}; "
            f"leave it out, and give --set {key}=... if it is wanted"
        )


def _is(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
