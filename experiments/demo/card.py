"""Writes the card of a trained model: a README.md for its Hugging Face directory.

    python -m experiments.demo.card runs/demo/target/config.yaml --out README.md

The config is that of the training, of kind `model`; a run leaves the one that it was made with.
Sizes are read from the model's directory, steps and seconds from the run's journal; losses are
computed on the trainer's held-out split and samples are drawn anew, so that the same weights always
give the same card. The card is card.md.j2, filled in.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.held_out import LONGEST, OPENING, openings
from experiments.common.shapes import n_parameters
from experiments.common.tables import made_line, table
from experiments.demo.losses import (
    ORDER,
    Losses,
    held_out_losses,
    n_tokens_used,
    say,
    train_ngrams,
)
from jspec.checkpoints.hf_config import write_hf_config
from jspec.checkpoints.hub import local_directory, weights_digest
from jspec.checkpoints.target import Target, load_target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.config import find_config, parse_sets, read_yaml, resolve
from jspec.console.commands import exit_code
from jspec.console.flags import Parser
from jspec.errors import UserError
from jspec.infer.engine import Engine
from jspec.infer.request import Request
from jspec.text_files import read_json_object
from jspec.train.config import ModelConfig
from jspec.train.corpus import corpus_name, read_rows
from jspec.train.data import TextData, corpus_sources, load_corpora
from jspec.train.journal import read_journal

TEMPLATE = Path(__file__).with_name("card.md.j2")
SOURCES = Path(__file__).with_name("sources.yaml")

SAMPLES = 10
NEW_TOKENS = 80
TEMPERATURE = 0.7


def card(args: argparse.Namespace) -> str:
    """The README of a model."""
    layers = [(args.config, read_yaml(find_config(args.config)))]
    layers.append(("--set", parse_sets(args.set, ModelConfig)))
    config = resolve(ModelConfig, layers)
    journal = read_journal(Path(config.out))
    if not any("seconds" in record for record in journal):
        raise UserError(f"{config.out} has no journal of steps; give the config of a run")
    directory = args.model or Path(config.out) / "model"
    tokenizer_folder = local_directory(config.tokenizer)
    tokenizer = load_tokenizer(tokenizer_folder, config.data.chat_template)
    if tokenizer is None:
        raise UserError(f"{config.tokenizer} has no tokenizer")
    target = load_target(directory)
    if not target.stop_ids:
        target = dataclasses.replace(target, stop_ids=(tokenizer.eos_id,))
    sources = corpus_sources(config.data).items()  # the demo has files alone
    paths = {source: repeat for source, repeat in sources if isinstance(source, Path)}
    for path in paths:
        source_cells(path)  # an unknown one is refused before anything takes time
    say("reading and packing text")
    data = load_corpora(config.data, tokenizer_folder, cache=None)
    say(f"counting {ORDER}-grams")
    ngrams = train_ngrams(data, vocab_size=target.vocab_size, begin=tokenizer.bos_id)
    losses = held_out_losses(target, data, ngrams, tokenizer)
    return render(
        title=args.title,
        licence=args.licence,
        tokenizer=tokenizer,
        kind=read_json_object(tokenizer_folder / "tokenizer.json")["model"]["type"],
        digest=weights_digest(directory),
        size=sum(path.stat().st_size for path in directory.glob("*.safetensors")),
        model=target.model.config,
        architecture=write_hf_config(target.model.config)["architectures"][0],
        n_parameters=n_parameters(target.params),
        dtype=target.dtype,
        config=config,
        **training_facts(config, journal, data),
        sources=source_table(paths, data),
        losses=losses and {**losses, "all": Losses.sum(losses.values())},
        order=ORDER,
        counts=", ".join(f"{len(grams):,} of {n}" for n, grams in enumerate(ngrams.grams, 1)),
        n_samples=SAMPLES,
        longest=LONGEST,
        opening=OPENING,
        new_tokens=NEW_TOKENS,
        temperature=TEMPERATURE,
        samples=samples_of(list(paths), target, tokenizer, config.data.held_out),
        made=made_line(),
    )


def training_facts(
    config: ModelConfig, journal: Sequence[Mapping[str, Any]], data: TextData
) -> dict[str, Any]:
    """How long it was trained, and which step's weights are the best."""
    steps = [record for record in journal if "seconds" in record]
    n_steps = max(record["step"] for record in steps)
    epochs = n_steps * config.batch_size / data.n_sequences
    scored = [record for record in journal if "held_out" in record]
    return {
        "data": data,
        "n_steps": n_steps,
        "epochs": epochs,
        "n_trained": float(f"{epochs * data.n_tokens:.3g}"),
        "hours": sum(record["seconds"] for record in steps) / 3600,
        "best": min(scored, key=lambda record: record["held_out"]) if scored else None,
    }


def source_table(paths: Mapping[Path, float], data: TextData) -> str:
    """What it was trained on, and how often an epoch has each."""
    return table(
        [
            {
                "corpus": corpus_name(path),
                **source_cells(path),
                "training tokens": f"{n_tokens_used(data, corpus_name(path)):,}",
                "times an epoch": f"{repeat:g}",
            }
            for path, repeat in paths.items()
        ]
    )


def source_cells(path: Path) -> dict[str, str]:
    """What a corpus is, where it is from and under which licence; token ids a model wrote.

    Raises:
      UserError: a text whose licence is not known.
    """
    name, sources = corpus_name(path), read_yaml(SOURCES)
    if name in sources:
        source = sources[name]
        link = f"[{source['repository']}](https://github.com/{source['repository']})"
        return {"content": source["content"], "from": link, "licence": source["licence"]}
    first = next(read_rows(path))
    if first.text is None and not first.messages:
        content, licence = "Written by a model of this series", "as the texts which it learnt"
        return {"content": content, "from": "-", "licence": licence}
    raise UserError(
        f"no source and licence are known for the corpus {name}; add it to {SOURCES.name}"
    )


def samples_of(
    paths: Sequence[Path], target: Target, tokenizer: Tokenizer, share: float
) -> dict[str, list[dict[str, Any]]]:
    """By corpus: what the model writes after held-out openings, and a fence that is long enough.

    Each is what `jspec.generate` says to its opening, with its place as seed.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    engine = Engine(target, batch_size=SAMPLES)
    for path in paths:
        some = openings(path, tokenizer, count=SAMPLES, seed=0, share=share)
        settings = {"max_new_tokens": NEW_TOKENS, "temperature": TEMPERATURE}
        requests = [
            Request(tokens=one.tokens, seed=seed, stop_ids=target.stop_ids, **settings)
            for seed, one in enumerate(some)
        ]
        samples = found[corpus_name(path)] = []
        for one, request, answer in zip(some, requests, engine.decode(requests), strict=True):
            before, after = (
                tokenizer.decode(tokens, with_special=True)
                for tokens in (one.tokens, answer.tokens)
            )
            text = f"⟦{before}⟧{after}"
            longest = max((len(run) for run in re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            sample = {"seed": request.seed, "row_id": one.row_id, "text": text, "fence": fence}
            samples.append(sample)
    return found


def render(**values: Any) -> str:
    """The template with its blanks filled in; every one must be."""
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(values) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the card; returns the exit code."""

    def command() -> int:
        parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        add = parser.add_argument
        add("config", help="YAML of the training, or the name of a ready config")
        add("--set", action="append", default=[], metavar="KEY=VALUE")
        add("--model", type=Path, help="directory; `model` of the run if not given")
        add("--title", default="jspec demo model", help="of the card")
        add("--licence", default="apache-2.0", help="of the weights")
        add("--out", type=Path, required=True, help="file that is written")
        args = parser.parse_args(argv)
        text = card(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
        say(f"wrote {args.out}")
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
