"""`kind: tokenizer` trains a byte-level BPE tokenizer on all of its text.

Every text has tokens, and decodes to itself: nothing is normalised. Numbers are split into digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from jspec.console.log import Log
from jspec.errors import UserError
from jspec.train.command.recipes import is_made
from jspec.train.config import TokenizerConfig
from jspec.train.data import corpus_sources, training_rows
from jspec.train.files import written_whole

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words with the space before them, digits one by one, runs of signs, white space."""

N_BYTES = 256


def run(config: TokenizerConfig, *, log: Log, resume: bool, as_json: bool) -> int:
    """Train on all training rows and write the directory; the same text gives the same tokens."""
    if jax.process_count() > 1:
        raise UserError("a tokenizer is trained on one host; leave out --hosts")
    directory, counts = Path(config.out), {"rows": 0, "characters": 0}
    if is_made(directory / "tokenizer.json", "a tokenizer", directory, log=log, resume=resume):
        return 0

    def texts():
        for source in corpus_sources(config.data):
            for row in training_rows(source, config.data):
                text = row.text
                if text is None:
                    text = "\n".join(message["content"] for message in row.messages)
                counts["rows"] += 1
                counts["characters"] += len(text)
                yield text

    log.note(what := "training the tokenizer")
    with log.status(what), written_whole(directory, last="tokenizer.json") as unfinished:
        how = config.model_dump(exclude={"kind", "out", "data"})
        tokenizer = train_tokenizer(texts(), unfinished, **how)
    log.note(
        f"{len(tokenizer)} entries from {counts['rows']:,} rows of {counts['characters']:,} "
        f"characters, in {directory}"
    )
    if as_json:
        print(json.dumps({"summary": {"out": str(directory), "vocab": len(tokenizer), **counts}}))
    return 0


def train_tokenizer(
    texts: Iterable[str],
    directory: Path,
    *,
    vocab_size: int,
    bos: str,
    eos: str,
    special: tuple[str, ...] = (),
    chat_template: str | None = None,
    max_length: int,
) -> Any:
    """Train on texts and write a directory that `transformers` loads.

    Args:
      vocab_size: entries, the 256 bytes and all special tokens included.
      bos, eos: tokens that begin and end a text; BOS is added to every text that is encoded.
      special: further tokens without text, such as turns of a conversation.
      chat_template: Jinja; may use `bos_token` and `eos_token`.
      max_length: `model_max_length` of the tokenizer, tokens.

    Returns:
      The `transformers` tokenizer.

    Raises:
      UserError: a vocabulary that is too small, or too little text to fill it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = list(dict.fromkeys((bos, eos, *special)))
    if vocab_size < N_BYTES + len(names):
        raise UserError(
            f"vocab_size {vocab_size} has no room for {N_BYTES} bytes and {len(names)} special "
            f"tokens; give at least {N_BYTES + len(names)}"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    if bpe.get_vocab_size() < vocab_size:
        raise UserError(
            f"the text yields only {bpe.get_vocab_size()} of {vocab_size} entries; give more text "
            "or a smaller vocab_size"
        )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, bpe.token_to_id(bos))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=[name for name in names if name not in (bos, eos)],
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(directory))
    return tokenizer
