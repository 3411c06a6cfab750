"""`transformers`' generate in a process of its own: a command a line on stdin, an answer on stdout.

It keeps its threads and its memory to itself, and works only while jspec waits: a fair race.

    python -m jspec.bench.peers DIRECTORY --threads 2
    {"is_ready": true}
    {"prompt": [1, 2, 3], "new_tokens": 64}  ->  {"seconds": 0.41, "tokens": [...], ...}

A command may also have `way`, `temperature`, `seed` and filters such as `top_p`. An answer also
tells `calls`, the target's forwards, and `first_s`, the seconds until the first of them was done.
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


class Peer:
    """The parent's end of the worker process.

    Args:
      directory: a Hugging Face checkpoint.
      arguments: flags of the worker.
    """

    def __init__(self, directory: str, *arguments: str):
        command = [sys.executable, "-m", "jspec.bench.peers", directory, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def decode(self, prompt: list[int], new_tokens: int, **options: Any) -> dict[str, Any]:
        """Run one command: `seconds` of wall time, the new `tokens`, and what else is known."""
        assert self._process.stdin is not None
        command = {"prompt": prompt, "new_tokens": new_tokens, **options}
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the transformers worker ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Let the worker end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def load(flags: argparse.Namespace) -> Callable[..., dict[str, Any]]:
    """Load the models; returns what decodes a prompt, past every stop token."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(flags.threads)

    def model_of(path: str) -> Any:
        dtype = getattr(torch, flags.dtype)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        model.generation_config.eos_token_id = None
        return model.eval()

    model, small = model_of(flags.directory), model_of(flags.draft) if flags.draft else None
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
    ) -> dict[str, Any]:
        tokens = torch.tensor([prompt])
        law: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            law = {"do_sample": True, "temperature": temperature, "top_k": 0, **filters}
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
                **options_of(way, small),
            )
        return {
            "tokens": text[0, len(prompt) :].tolist(),
            "calls": len(ends),
            "first_s": ends[0] - start,
        }

    return decode


def options_of(way: str, small: Any) -> dict[str, Any]:
    """Options of `generate` for a way to decode.

    Args:
      way: "plain", "assisted" with the library's defaults (drafts of up to 20, cut by confidence),
        or "lookup:N" for N tokens of prompt lookup.
      small: the loaded draft model.
    """
    kind, _, length = way.partition(":")
    if kind == "plain":
        return {"cache_implementation": "dynamic"}
    if kind == "lookup":
        return {"prompt_lookup_num_tokens": int(length)}
    config = small.generation_config  # what the checkpoint says of drafts is left out
    config.num_assistant_tokens = config.num_assistant_tokens_schedule = None
    config.assistant_confidence_threshold = None
    return {"assistant_model": small}


def main() -> None:
    """Answer commands until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draft", help="a checkpoint for assisted generation")
    parser.add_argument("--dtype", default="float32")
    flags = parser.parse_args()

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.threads])
    decode = load(flags)
    print(json.dumps({"is_ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        start = time.perf_counter()
        answer = decode(command.pop("prompt"), command.pop("new_tokens"), **command)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, **answer}), flush=True)


if __name__ == "__main__":
    main()
