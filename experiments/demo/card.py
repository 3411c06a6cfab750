"""Writes the card of a trained model: a README.md for its Hugging Face directory.

    python -m experiments.demo.card runs/demo/target/config.yaml --out README.md

The config is that of the training, of kind `model`; a run leaves the one that it was made with.
Sizes are read from the model's directory, steps and seconds from the run's journal; losses are
computed on the trainer's held-out split and samples are drawn anew, so that the same weights always
give the same card.

In reading order: what the card needs (`Facts`), its sections, the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.common.tables import table
from experiments.demo.card_numbers import (
    NEW_TOKENS,
    OPENING,
    ORDER,
    SAMPLES,
    TEMPERATURE,
    HeldOut,
    Sample,
    choose_samples,
    held_out_losses,
    n_tokens_used,
    say,
    train_ngrams,
    write_samples,
)
from experiments.demo.sources import CHANGES, source_cells
from jspec.checkpoints.hf_config import write_hf_config
from jspec.checkpoints.hub import local_directory, weights_digest
from jspec.checkpoints.target import Target, load_target
from jspec.checkpoints.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jspec.config import find_config, parse_sets, read_yaml, resolve
from jspec.errors import UserError
from jspec.provenance import provenance
from jspec.text_files import read_json_object
from jspec.train.command.corpora import corpus_sources, load_corpora
from jspec.train.config import DataConfig, ModelConfig, OptimizerConfig
from jspec.train.corpus import corpus_name
from jspec.train.data import TextData
from jspec.train.journal import read_journal
from jspec.train.ngram import NGramModel

# --- the card ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that the card tells.

    Attributes:
      licence: of the weights.
      config: of the training.
      journal: of its run.
      directory: of the model, which `target` was loaded from.
      ngrams: estimated on what was trained on.
      losses, samples: by corpus.
    """

    title: str
    licence: str
    config: ModelConfig
    journal: Sequence[Mapping[str, Any]]
    directory: Path
    target: Target
    tokenizer_folder: Path
    tokenizer: Tokenizer
    data: TextData
    ngrams: NGramModel
    losses: Mapping[str, HeldOut]
    samples: Mapping[str, Sequence[Sample]]


def card(facts: Facts) -> str:
    """The README of a model."""
    head = (
        f"---\nlanguage: en\nlicense: {facts.licence}\nlibrary_name: jspec\n"
        "pipeline_tag: text-generation\n---"
    )
    sections = {
        "Model": _model,
        "Training": _training,
        "Data": _data,
        "Held-out loss": _losses,
        "Samples": _samples,
    }
    made = provenance()
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    parts = [
        head,
        f"# {facts.title}",
        "A small causal language model for demonstrations of speculative decoding with jspec. It "
        "was made to be quick and to write plausible text; it knows few facts, and was not tuned "
        "to be helpful or harmless.",
        *(f"## {title}\n\n{make(facts)}" for title, make in sections.items()),
        f"Every number here was computed by `python -m experiments.demo.card` (commit "
        f"{made['commit']}; {versions}).",
    ]
    return "\n\n".join(parts) + "\n"


def _model(facts: Facts) -> str:
    config = facts.target.model.config
    kind = read_json_object(facts.tokenizer_folder / "tokenizer.json")["model"]["type"]
    n_parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(facts.target.params))
    size = sum(path.stat().st_size for path in facts.directory.glob("*.safetensors"))
    special = " ".join(f"`{facts.tokenizer.token(i)}`" for i in sorted(facts.tokenizer.special_ids))
    rows = [
        ["architecture", str(write_hf_config(config)["architectures"][0])],
        ["parameters", f"{n_parameters:,}"],
        ["size of the weights", f"{size / 1e6:.1f} MB"],
        ["layers", str(config.n_layers)],
        ["width, MLP width", f"{config.width}, {config.mlp_width}"],
        [
            "query heads, key/value heads, head width",
            f"{config.n_heads}, {config.n_kv_heads}, {config.head_dim}",
        ],
        ["output head", "the embeddings" if config.has_tied_head else "its own"],
        ["longest text", f"{config.max_length} tokens"],
        ["tokenizer", f"{kind}, {facts.tokenizer.n_ids:,} entries"],
        ["SHA-256 over config and weights", f"`{weights_digest(facts.directory)}`"],
        ["licence of the weights", facts.licence],
    ]
    return f"{table(['', ''], rows)}\n\nSpecial tokens: {special}"


def _training(facts: Facts) -> str:
    config, data = facts.config, facts.data
    steps = [record for record in facts.journal if "seconds" in record]
    n_steps = max(record["step"] for record in steps)
    epochs = n_steps * config.batch_size / data.n_sequences
    rows = [
        ["steps", f"{n_steps:,}"],
        ["a step", f"{config.batch_size} sequences of at most {config.data.length} tokens"],
        ["epochs", f"{epochs:.2f}"],
        [
            "tokens of an epoch, of all steps",
            f"{data.n_tokens:,}, {_short(epochs * data.n_tokens)}",
        ],
        ["optimizer", _optimizer(config.optimizer)],
        ["learnt", _learnt(config)],
        ["types", f"float32 weights, {config.compute_dtype} passes"],
        ["seed", str(config.seed)],
        ["time in steps", f"{sum(record['seconds'] for record in steps) / 3600:.2f} hours"],
    ]
    scored = [record for record in facts.journal if "held_out" in record]
    if scored:
        best = min(scored, key=lambda record: record["held_out"])
        said = f"step {best['step']:,}, held-out loss {best['held_out']:.3f} in training"
        rows.append(["weights of", said])
    start = "random weights" if config.init_from is None else f"`{config.init_from}`"
    return f"From {start}, with `python -m jspec.train`.\n\n" + table(["", ""], rows)


def _optimizer(config: OptimizerConfig) -> str:
    decay = config.decay
    if decay == "linear" and config.decay_steps is not None:
        decay = f"linear over the last {config.decay_steps}"
    return (
        f"{config.name}, learning rate {config.learning_rate:g}, warm-up of {config.warmup_steps} "
        f"steps, decay {decay} to {config.final_share:g} of it, weight decay "
        f"{config.weight_decay:g}"
    )


def _learnt(config: ModelConfig) -> str:
    text = "next tokens of all texts"
    if config.data.loss_on == "assistant":
        text += ", in conversations of what the assistant says"
    return text if config.teacher is None else f"{text}; predictions of `{config.teacher}`"


def _files(data: DataConfig) -> dict[Path, float]:
    """The corpora that are files, and how often an epoch has each; the demo has no others."""
    sources = corpus_sources(data).items()
    return {source: repeat for source, repeat in sources if isinstance(source, Path)}


def _data(facts: Facts) -> str:
    rows = []
    for path, repeat in _files(facts.config.data).items():
        name = corpus_name(path)
        n_tokens = n_tokens_used(facts.data, name)
        rows.append([name, *source_cells(path), f"{n_tokens:,}", f"{repeat:g}"])
    head = ["corpus", "content", "from", "licence", "training tokens", "times an epoch"]
    return (
        f"{table(head, rows)}\n\n{CHANGES} {facts.config.data.held_out:.0%} of the rows, by a "
        "hash of their ids, were held out. Where an epoch has a corpus less than once, the rest of "
        "it is not used and not counted."
    )


_WHO = ("this model", f"{ORDER}-gram")


def _losses(facts: Facts) -> str:
    def row(name: str, held_out: HeldOut) -> list[str]:
        sums = (held_out.model, held_out.ngram)
        return [
            name,
            f"{held_out.n_tokens:,}",
            *(f"{nats / held_out.n_tokens:.3f}" for nats in sums),
            *(f"{nats / math.log(2) / max(held_out.n_bytes, 1):.3f}" for nats in sums),
        ]

    if not facts.losses:
        return "Nothing was held out."
    rows = [row(name, held_out) for name, held_out in facts.losses.items()]
    every = HeldOut(0, 0, 0.0, 0.0)
    for held_out in facts.losses.values():
        every += held_out
    head = ["corpus", "tokens"]
    head += [f"{who}, {unit}" for unit in ("nats a token", "bits a byte") for who in _WHO]
    counts = ", ".join(f"{len(grams):,} of {n}" for n, grams in enumerate(facts.ngrams.grams, 1))
    return (
        f"{table(head, [*rows, row('all', every)])}\n\n"
        f"All held-out texts, in pieces of at most {facts.config.data.length} tokens, computed in "
        f"{facts.target.dtype}. The {ORDER}-gram model is interpolated modified Kneser-Ney over "
        f"the same vocabulary ({counts} tokens), estimated on the pieces of an epoch of training, "
        "each once; it predicts the same tokens from what comes before them in the same piece. The "
        "end of a text counts as a token, and has no bytes."
    )


def _samples(facts: Facts) -> str:
    intro = (
        f"Not chosen: of every corpus the first {SAMPLES} held-out rows, in the order of the file "
        f"(all, where there are fewer), without plain texts of {OPENING} tokens or less and "
        f"conversations whose opening leaves no room. An opening, in ⟦ ⟧, is the first {OPENING} "
        "tokens of a plain text, or the first user turn of a conversation through the chat "
        f"template. {NEW_TOKENS} new tokens at most, temperature {TEMPERATURE}, seeds 0 to "
        f"{SAMPLES - 1} in order, `jspec.generate`. Special tokens are shown."
    )
    parts = [intro]
    for name, samples in facts.samples.items():
        parts.append(f"### {name}")
        parts += [_block(sample, facts.tokenizer) for sample in samples]
    return "\n\n".join(parts)


def _block(sample: Sample, tokenizer: Tokenizer) -> str:
    opening, new = (
        tokenizer.decode(tokens, with_special=True) for tokens in (sample.opening, sample.new)
    )
    text = f"⟦{opening}⟧{new}"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"Seed {sample.seed}, row `{sample.row_id}`:\n\n{fence}text\n{text}\n{fence}"


def _short(number: float) -> str:
    """Three digits."""
    return f"about {float(f'{number:.3g}'):,.0f}"


# --- the command ---------------------------------------------------------------------------------


def gather(args: argparse.Namespace) -> Facts:
    """Everything that takes time."""
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
    paths = _files(config.data)
    for path in paths:
        source_cells(path)  # an unknown one is refused before anything takes time
    say("reading and packing text")
    data = load_corpora(config.data, tokenizer_folder, cache=args.packed)
    say(f"counting {ORDER}-grams")
    begin = tokenizer.bos_id
    ngrams = train_ngrams(data, vocab_size=target.vocab_size, begin=begin)
    losses = held_out_losses(target, data, ngrams, tokenizer)
    chosen = {
        corpus_name(path): choose_samples(
            path, tokenizer, held_out=config.data.held_out, max_length=target.max_length
        )
        for path in paths
    }
    return Facts(
        title=args.title,
        licence=args.licence,
        config=config,
        journal=journal,
        directory=directory,
        target=target,
        tokenizer_folder=tokenizer_folder,
        tokenizer=tokenizer,
        data=data,
        ngrams=ngrams,
        losses=losses,
        samples=write_samples(target, chosen),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="YAML of the training, or the name of a ready config")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--model", type=Path, help="directory; `model` of the run if not given")
    parser.add_argument("--packed", type=Path, help="folder of packed text that is kept, or read")
    parser.add_argument("--title", default="jspec demo model", help="of the card")
    parser.add_argument("--licence", default="apache-2.0", help="of the weights")
    parser.add_argument("--out", type=Path, required=True, help="file that is written")
    args = parser.parse_args(argv)
    try:
        text = card(gather(args))
    except UserError as error:
        say(f"demo_card.py: {error}")
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    say(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
