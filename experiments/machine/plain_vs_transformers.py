"""Plain greedy decoding against `transformers`' generate: same weights, dtype and threads.

Two worker processes decode in turn. Decode-only time of a round is (t(1 + N) - t(1)) / N, so that
loading, compiling and the prompt are in neither; medians over interleaved rounds.

    python -m experiments.machine.plain_vs_transformers --out runs/plain.json

Both workers need `jspec` and `torch` in one environment (`make parity-env`), or give the other
interpreter with --transformers-python.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from experiments.common.shapes import SHAPES, TARGETS, n_parameters, random_model
from jspec.bench.peers import Peer
from jspec.bench.timing import spread
from jspec.checkpoints.write import write_checkpoint
from jspec.provenance import provenance


def write_random_llama(shape: str, directory: Path) -> int:
    """Save a random checkpoint; returns its number of parameters."""
    _, params = random_model(shape)
    write_checkpoint(directory, params, SHAPES[shape])
    return n_parameters(params)


def same_prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two texts share from the start."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def race(peers: dict[str, Peer], prompt: list[int], new_tokens: int, rounds: int) -> dict:
    """Interleaved rounds: decode-only milliseconds a token and whole-call seconds, by peer."""
    per_token = {name: [] for name in peers}
    whole = {name: [] for name in peers}
    texts: dict[str, list[int]] = {}
    for number in range(rounds + 1):
        for name, peer in peers.items():
            short = peer.decode(prompt, 1)["seconds"]
            long = peer.decode(prompt, 1 + new_tokens)
            texts[name] = long["tokens"]
            if number == 0:
                continue
            per_token[name].append(1e3 * (long["seconds"] - short) / new_tokens)
            whole[name].append(long["seconds"])
    return {"ms_per_token": per_token, "whole_s": whole, "texts": texts}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=TARGETS, default="deep-14m")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic")
    parser.add_argument("--transformers-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--out", type=Path, help="where the JSON record goes")
    arguments = parser.parse_args()

    vocabulary = SHAPES[arguments.shape].vocab_size
    prompt = [(7 * i + 3) % vocabulary for i in range(arguments.prompt_tokens)]
    length = arguments.prompt_tokens + arguments.new_tokens + 1
    with tempfile.TemporaryDirectory() as directory:
        n_params = write_random_llama(arguments.shape, Path(directory))
        threads = ("--threads", str(arguments.threads))
        peers = {
            "jspec": Peer("jspec", directory, *threads, "--max-length", str(length)),
            "transformers": Peer(
                "transformers",
                directory,
                *threads,
                "--cache",
                arguments.cache,
                python=arguments.transformers_python,
            ),
        }
        result = race(peers, prompt, arguments.new_tokens, arguments.rounds)
        peer_versions = {name: peer.versions for name, peer in peers.items()}
        for peer in peers.values():
            peer.close()
    texts = result.pop("texts")
    ratios = {
        kind: [
            theirs / ours
            for theirs, ours in zip(values["transformers"], values["jspec"], strict=True)
        ]
        for kind, values in result.items()
    }
    record = {
        **provenance(),
        "shape": arguments.shape,
        "parameters": n_params,
        "dtype": "float32",
        "peers": peer_versions,
        "threads": arguments.threads,
        "transformers_cache": arguments.cache,
        "prompt_tokens": arguments.prompt_tokens,
        "new_tokens": arguments.new_tokens,
        "equal_tokens": same_prefix(texts["jspec"], texts["transformers"]),
        **{
            kind: {name: spread(numbers) for name, numbers in values.items()}
            for kind, values in result.items()
        },
        "speedup_decode": spread(ratios["ms_per_token"]),
        "speedup_whole": spread(ratios["whole_s"]),
        "speedup_of_best": min(result["ms_per_token"]["transformers"])
        / min(result["ms_per_token"]["jspec"]),
    }
    report(record)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def report(record: dict) -> None:
    """The record as a few lines."""
    print(
        f"{record['parameters'] / 1e6:.1f}M float32, {record['threads']} threads, "
        f"{record['prompt_tokens']} + {record['new_tokens']} tokens, "
        f"transformers cache {record['transformers_cache']}; load {record['load_average'][0]}"
    )
    for name, numbers in record["ms_per_token"].items():
        print(
            f"{name:>13}: {numbers['median']:.2f} ms a token "
            f"({numbers['min']:.2f} to {numbers['max']:.2f}, {numbers['n']} rounds), "
            f"{1e3 / numbers['median']:.0f} tokens/s"
        )
    for kind in ("speedup_decode", "speedup_whole"):
        numbers = record[kind]
        print(
            f"{kind}: {numbers['median']:.2f} as median of round ratios "
            f"({numbers['min']:.2f} to {numbers['max']:.2f})"
        )
    print(f"speedup_of_best: {record['speedup_of_best']:.2f} as ratio of the fastest rounds")
    print(f"equal tokens: {record['equal_tokens']} of {record['new_tokens'] + 1}")


if __name__ == "__main__":
    main()
