"""Keys of a line of a prompts file: which are obeyed, which are refused, which are passed over.

What changes a text is never dropped in silence. Keys that nobody knows belong to the data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jspec.config import InferConfig, LineConfig, nearest, shown
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
    "random_seed": "seed",
    "input_ids": "prompt_tokens",
    "prompt_token_ids": "prompt_tokens",
}
"""What other formats call our keys."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "num_return_sequences": (1,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "use_beam_search": (False,),
    "do_sample": (),
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "encoder_repetition_penalty": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "tfs_z": (1,),
    "mirostat": (0,),
    "top_a": (0,),
    "guidance_scale": (1,),
    "watermark": (False,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "bad_words_ids": ([],),
    "min_tokens": (0,),
    "min_new_tokens": (0,),
    "min_length": (0,),
    "early_stopping": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "add_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "truncate_prompt_tokens": (),
    "truncate": (),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "prompt_logprobs": (0,),
    "details": (False,),
    "decoder_input_details": (False,),
    "return_full_text": (False,),
    "echo": (False,),
    "suffix": ("",),
    "stream": (False,),
    "model": (),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": (),
    "json_schema": (),
    "lora_request": (),
    "adapter_id": (),
    "chat_template_kwargs": ({},),
    "extra_body": ({},),
    "parameters": ({},),
    "sampling_params": ({},),
    "generation_config": ({},),
}
"""Keys of well-known request formats that nothing here does, and values that ask for nothing."""

_LIKELY_MISSPELT = 0.8


def check_keys(record: Mapping[str, Any], config: InferConfig, where: str) -> tuple[str, ...]:
    """The keys that ask for what is not done, and are passed over; the caller tells of them.

    Raises:
      UserError: a setting of the whole run that differs, one by another name, or one misspelt.
    """
    passed_over = []
    for key, value in record.items():
        if key in OBEYED or key in KINDS or key == "id":
            continue
        if key in _CALLED:
            raise UserError(f"{where}: {key!r} is called {_CALLED[key]!r} here; rename it")
        if key in _OF_THE_RUN:
            _check_same(key, value, config, where)
        elif key in _NEUTRAL:
            if value is not None and not any(_is(value, each) for each in _NEUTRAL[key]):
                passed_over.append(key)
        elif key == "target":
            passed_over += [key] if value != config.target else []
        elif near := nearest(key, OBEYED, _LIKELY_MISSPELT):
            raise UserError(f"{where}: unknown key {key!r}; did you mean {near!r}?")
    return tuple(passed_over)


def _check_same(key: str, value: Any, config: InferConfig, where: str) -> None:
    own = config.model_dump(mode="json")[key]
    if value != own:
        raise UserError(
            f"{where}: {key!r} is a setting of the whole run ({shown(own)}), given {shown(value)}; "
            f"leave it out, and give --set {key}=... if it is wanted"
        )


def _is(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
