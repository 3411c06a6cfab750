"""One decoder in a process of its own: a command a line on stdin, an answer a line on stdout.

Two of these, driven in turn, are a fair race: each keeps its threads and its memory to itself, and
only one of them works at a time.

    python -m jspec.bench.peers jspec DIRECTORY --threads 2 --max-length 512
    {"versions": {"jax": "0.10.2", ...}}
    {"prompt": [1, 2, 3], "new_tokens": 64}  ->  {"seconds": 0.41, "tokens": [...]}

`transformers` also takes `way`, `temperature`, `seed` and filters such as `top_p`, and tells
`calls`, its target forwards, and `first_s`, the seconds until the first of them was done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from jspec.versions import installed

PACKAGES = {"jspec": ("jspec", "jax", "jaxlib"), "transformers": ("transformers", "torch")}

Decode = Callable[..., dict]
"""Prompt, number of new tokens and options to `tokens`, the new ones, and what else is known."""


def jspec_peer(flags: argparse.Namespace) -> Decode:
    """The engine as a user gets it, one row, plain decoding."""
    from jspec.checkpoints.target import load_target
    from jspec.infer.engine import Engine
    from jspec.infer.request import Request

    engine = Engine(load_target(flags.directory), max_length=flags.max_length)

    def decode(prompt: list[int], new_tokens: int) -> dict:
        request = Request(tokens=tuple(prompt), max_new_tokens=new_tokens)
        return {"tokens": list(engine.decode([request])[0].tokens)}

    return decode


def transformers_peer(flags: argparse.Namespace) -> Decode:
    """`generate`, past every stop token."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(flags.threads)

    def load(path: str) -> Any:
        dtype = getattr(torch, flags.dtype)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        model.generation_config.eos_token_id = None
        return model.eval()

    model, small = load(flags.directory), load(flags.draft) if flags.draft else None
    plain_settings: dict[str, Any] = {"cache_implementation": flags.cache}
    if flags.cache == "static":
        plain_settings["disable_compile"] = True
    ends: list[float] = []
    model.register_forward_hook(lambda *_: ends.append(time.perf_counter()))

    def decode(
        prompt: list[int],
        new_tokens: int,
        *,
        way: str = "plain",
        temperature: float = 0.0,
        seed: int = 0,
        **filters: float,
    ) -> dict:
        tokens = torch.tensor([prompt])
        settings = plain_settings if way == "plain" else speculative_settings(way, small)
        if temperature > 0:
            law = {"do_sample": True, "temperature": temperature, "top_k": 0, **filters}
        else:
            law = {"do_sample": False}
        torch.manual_seed(seed)
        ends.clear()
        start = time.perf_counter()
        with torch.inference_mode():
            text = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new_tokens,
                pad_token_id=0,
                **law,
                **settings,
            )
        return {
            "tokens": text[0, len(prompt) :].tolist(),
            "calls": len(ends),
            "first_s": ends[0] - start,
        }

    return decode


def speculative_settings(way: str, small: Any) -> dict[str, Any]:
    """Options of `generate` for a way to speculate.

    Args:
      way: "assisted" with the library's defaults (drafts of up to 20, cut by confidence), or
        "lookup:N" for N tokens of prompt lookup.
      small: the loaded draft model.
    """
    kind, _, length = way.partition(":")
    if kind == "lookup":
        return {"prompt_lookup_num_tokens": int(length)}
    config = small.generation_config  # what the checkpoint says of drafts is left out
    config.num_assistant_tokens = config.num_assistant_tokens_schedule = None
    config.assistant_confidence_threshold = None
    return {"assistant_model": small}


class Peer:
    """The parent's end of one worker process."""

    def __init__(self, kind: str, directory: str, *arguments: str, python: str = sys.executable):
        command = [python, "-m", "jspec.bench.peers", kind, directory, *arguments]
        self.kind = kind
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def decode(self, prompt: list[int], new_tokens: int, **options: Any) -> dict:
        """Run one command: `seconds` of wall time, the new `tokens`, and what else is known."""
        assert self._process.stdin is not None
        command = {"prompt": prompt, "new_tokens": new_tokens, **options}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the {self.kind} worker ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Let the worker end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=PACKAGES)
    parser.add_argument("directory", help="a Hugging Face checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--draft", help="a checkpoint for assisted generation")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic")
    flags = parser.parse_args()

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    decode = jspec_peer(flags) if flags.kind == "jspec" else transformers_peer(flags)
    print(json.dumps({"versions": installed(*PACKAGES[flags.kind])}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        start = time.perf_counter()
        answer = decode(command.pop("prompt"), command.pop("new_tokens"), **command)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, **answer}), flush=True)


if __name__ == "__main__":
    main()
