"""Plain greedy decoding against `transformers`' generate: same random weights, dtype and threads.

    python -m experiments.machine.plain_vs_transformers --out runs/plain

Writes a checkpoint of random weights and a prompt to --out, and runs `python -m jspec.bench` on
them. It needs torch in the same environment, as that of `make race` has it. What to read is the row
`transformers plain`: its decode speedup is over plain jspec.
"""

from __future__ import annotations

import json

import yaml

from experiments.common.shapes import SHAPES, TARGETS, random_model
from experiments.common.tables import parser_of
from jspec.bench.cli import main as bench
from jspec.checkpoints.write import write_checkpoint
from jspec.console.commands import exit_code, leave

PROMPT_TOKENS, THREADS = 64, 2


def run() -> int:
    """Write what is raced, and race."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--shape", choices=TARGETS, default="deep-14m")
    add("--new-tokens", type=int, default=192)
    add("--repeats", type=int, default=11)
    arguments = parser.parse_args()
    out, config = arguments.out, SHAPES[arguments.shape]
    prompt = [(7 * i + 3) % config.vocab_size for i in range(PROMPT_TOKENS)]
    (out / "model").mkdir(parents=True, exist_ok=True)
    write_checkpoint(out / "model", random_model(arguments.shape)[1], config)
    (out / "random.yaml").write_text(yaml.safe_dump({"target": str(out / "model")}))
    (out / "prompts.jsonl").write_text(json.dumps({"id": "one", "prompt_tokens": prompt}) + "\n")
    flags = ["--config", str(out / "random.yaml"), "--prompts", str(out / "prompts.jsonl")]
    flags += ["--out", str(out), "--drafters", "prompt-lookup", "--temperatures", "0"]
    flags += ["--max-new-tokens", str(1 + arguments.new_tokens), "--contexts", str(len(prompt))]
    flags += ["--repeats", str(arguments.repeats)]
    flags += ["--set", f"threads={THREADS}", "has_profile=false"]
    return bench(flags, owns_process=True)


if __name__ == "__main__":
    leave(exit_code(run))
