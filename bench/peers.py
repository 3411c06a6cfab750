"""One decoder in a process of its own: a command a line on stdin, an answer a line on stdout.

Two of these, driven in turn, are a fair race: each keeps its threads and its memory to itself, and
only one of them works at a time.

    python bench/peers.py jspec DIRECTORY --threads 2 --max-length 512
    {"versions": {"jax": "0.10.2", ...}}
    {"prompt": [1, 2, 3], "new_tokens": 64}  ->  {"seconds": 0.41, "tokens": [...]}
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from records import versions

PACKAGES = {"jspec": ("jspec", "jax", "jaxlib"), "transformers": ("transformers", "torch")}

Decode = Callable[[list[int], int], list[int]]
"""Prompt and number of new tokens to the new tokens, greedily."""


def jspec_peer(directory: str, *, max_length: int) -> Decode:
    """The engine as a user gets it, one row, plain decoding."""
    from jspec.infer.engine import Engine
    from jspec.infer.request import Finished, Request
    from jspec.models.target import load_target

    target = load_target(directory)
    engine = Engine(target, max_length=max_length)

    def decode(prompt: list[int], new_tokens: int) -> list[int]:
        request = Request(tokens=tuple(prompt), max_new_tokens=new_tokens)
        ends = [event for event in engine.run([request]) if isinstance(event, Finished)]
        return list(ends[0].result.tokens)

    return decode


def transformers_peer(directory: str, *, threads: int, cache: str) -> Decode:
    """`generate`, greedy, in float32."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    model.generation_config.eos_token_id = None
    settings = {"do_sample": False, "pad_token_id": 0, "cache_implementation": cache}
    if cache == "static":
        settings["disable_compile"] = True

    def decode(prompt: list[int], new_tokens: int) -> list[int]:
        tokens = torch.tensor([prompt])
        with torch.inference_mode():
            text = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                **settings,
            )
        return text[0, len(prompt) :].tolist()

    return decode


class Peer:
    """The parent's end of one worker process."""

    def __init__(self, kind: str, directory: str, *arguments: str, python: str = sys.executable):
        command = [python, str(Path(__file__).resolve()), kind, directory, *arguments]
        self.kind = kind
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def decode(self, prompt: list[int], new_tokens: int) -> dict:
        """Run one command: `seconds` of wall time and the new `tokens`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "new_tokens": new_tokens}) + "\n")
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
    parser.add_argument("kind", choices=("jspec", "transformers"))
    parser.add_argument("directory", help="a Hugging Face checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic")
    arguments = parser.parse_args()

    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)
    if arguments.kind == "jspec":
        decode = jspec_peer(arguments.directory, max_length=arguments.max_length)
    else:
        decode = transformers_peer(
            arguments.directory, threads=arguments.threads, cache=arguments.cache
        )
    print(json.dumps({"versions": versions(*PACKAGES[arguments.kind])}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        start = time.perf_counter()
        tokens = decode(command["prompt"], command["new_tokens"])
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
