"""What can be trained, as configs read from YAML.

Every file says its `kind`: a `tokenizer`, a `model`, a `diffusion` model, a `falcon` drafter, an
`ngram` model, or `texts` that a model writes for others to learn from. In reading order: the parts,
the kinds, `KINDS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import field_validator

from jspec.config import Config, MeshConfig, count, digest_field, field, required, seed_field
from jspec.law import TEMPERATURES, is_temperature
from jspec.train.csgd import Glance


def _text(help_: str, expected: str, default: str | None = None, **limits) -> Any:
    return field(default, help_, expected, is_text=True, **limits)


def _path(help_: str, default: str | None = None) -> Any:
    return _text(help_, "a path", default, min_length=1)


def _draft_vocabulary() -> Any:
    return count(
        0, "learn to draft only so many tokens, those that the text has most often; 0: all", low=0
    )


def _features() -> Any:
    return _path("folder that keeps the teacher's features; each step computes them if not given")


# --- parts ---------------------------------------------------------------------------------------


class CorpusConfig(Config):
    """Names one file of text, or a split of a Hugging Face dataset."""

    file: str | None = _text(
        "in data.folder, or from here if it begins with ./ or /", "a file name"
    )
    dataset: str | None = _text("hub id or folder; needs the extra data", "an id or path")
    split: str = _text("of the dataset", "a split such as train[:1000]", "train")
    subset: str | None = _text("the dataset's configuration, where it has several", "a name")
    repeat: float = field(1.0, "how often an epoch has it; 0.5 takes half", gt=0)

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> CorpusConfig:
        if (self.file is None) == (self.dataset is None):
            raise ValueError("exactly one of file and dataset")
        return self

    def path_in(self, folder: str) -> str | None:
        """Tell where its file is: in the folder, or from here; None of a dataset."""
        if self.file is None or self.file.startswith(("./", "/")):
            return self.file
        return str(Path(folder) / self.file)


class DataConfig(Config):
    """Says which text, and how it becomes sequences."""

    folder: str = _path("folder of the corpora", "data")
    corpora: list[CorpusConfig] = required(
        "files of text or datasets",
        "a list of file names, or mappings with a file or a dataset",
        min_length=1,
    )
    length: int = count(512, "tokens of a sequence", low=8)
    held_out: float = field(0.02, "share of rows kept out of training", ge=0, le=0.5)
    loss_on: Literal["all", "assistant"] = field(
        "all", "what is learnt of a conversation, or of what a model wrote after its prompt"
    )
    cut_repeats: int = count(
        0, "a model's answer ends before its first repeated n-gram of so many tokens", low=0
    )
    chat_template: str | None = _text("where the tokenizer has none", "a Jinja template")
    system: str | None = field(None, "begins conversations that have no system message")
    overlong: Literal["truncate", "pieces"] = field(
        "pieces", "texts longer than a sequence are truncated, or cut into pieces from position 0"
    )

    @field_validator("corpora", mode="before")
    @classmethod
    def _names_are_files(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"file": item} if isinstance(item, str) else item for item in value]

    @property
    def encoding(self) -> dict[str, Any]:
        """Tell how rows become tokens: the options of `encode_rows`."""
        return self.model_dump(include={"loss_on", "system", "cut_repeats"})


class TruncatedDataConfig(DataConfig):
    """Says which text; every sequence of it begins where decoding begins."""

    overlong: Literal["truncate", "pieces"] = field(
        "truncate", "texts longer than a sequence are truncated, or cut into pieces from position 0"
    )


class OptimizerConfig(Config):
    """Says how weights change."""

    name: Literal["adamw", "muon"] = field("adamw", "muon orthogonalises updates of matrices")
    learning_rate: float = field(3e-4, "highest", gt=0)
    final_share: float = field(0.1, "of the highest rate at the last step", ge=0, le=1)
    decay: Literal["cosine", "linear"] = field("cosine", "linear is constant before decay_steps")
    decay_steps: int | None = count(None, "of a linear decay; a fifth of all if not given")
    warmup_steps: int = count(100, "steps up to the highest rate", low=0)
    weight_decay: float = field(0.1, "of matrices", ge=0)
    b1: float = field(0.9, "decay of the first moment", ge=0, lt=1)
    b2: float = field(0.95, "decay of the second moment", ge=0, lt=1)
    max_gradient_norm: float = field(1.0, "gradients are scaled down to it; 0 is off", ge=0)
    max_gradient_value: float = field(0.0, "entries are clipped to it; 0 is off", ge=0)


class TrainMeshConfig(Config):
    """Says how many devices each axis has; sequences are split over both."""

    data: int = count(1, "copies of the weights")
    fsdp: int = count(1, "parts of the weights")


class LoopConfig(Config):
    """Has what every training has: how long, how much at once, how often what is done."""

    steps: int | None = count(None, "optimizer steps; epochs if not given")
    epochs: float | None = field(None, "passes over the data; steps if not given", gt=0)
    batch_size: int = count(32, "sequences of a step")
    micro_batch_size: int | None = count(None, "sequences at once; all of a batch if not given")
    optimizer: OptimizerConfig = field(OptimizerConfig(), "how weights change")
    compute_dtype: Literal["float32", "bfloat16"] = field("bfloat16", "of passes, not of weights")
    remat: bool = field(False, "compute layers again in the backward pass")
    mesh: TrainMeshConfig = field(TrainMeshConfig(), "devices along each axis", "axes")
    seed: int = seed_field("of weights and of the order of sequences")
    log_every: int = count(10, "steps between lines of metrics")
    eval_every: int = count(200, "steps between evaluations")
    eval_sequences: int | None = count(None, "held-out ones of a corpus; all if not given")
    save_every: int = count(200, "steps between checkpoints")

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> LoopConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("exactly one of steps and epochs")
        if self.batch_size % self.sequences_at_once:
            raise ValueError("batch_size a multiple of micro_batch_size")
        return self

    @property
    def sequences_at_once(self) -> int:
        """Sequences of one pass."""
        return self.micro_batch_size or self.batch_size


# --- kinds ---------------------------------------------------------------------------------------


class RunConfig(Config):
    """Has what every kind has: where it writes, and its text."""

    kind: str
    out: str = required("directory that is written; a file by kind texts", "a path")
    data: DataConfig = required("text", "a mapping")


class TokenizerConfig(RunConfig):
    """Trains a byte-level BPE tokenizer."""

    kind: Literal["tokenizer"] = field("tokenizer", "what is trained")
    vocab_size: int = count(4096, "entries, special tokens included", low=257)
    bos: str = field("<|start|>", "begins a text", min_length=1)
    eos: str = field("<|end|>", "ends a text", min_length=1)
    special: list[str] = field([], "further tokens without text", "a list of texts")
    chat_template: str | None = _text("of conversations", "a Jinja template")
    max_length: int = count(1024, "longest text the models serve, tokens")


class LanguageModelConfig(LoopConfig, RunConfig):
    """Has what every language model has: its beginning and a teacher."""

    tokenizer: str = required("directory of the tokenizer", "a path")
    model: dict[str, Any] = field(
        {}, "sizes, as in DecoderConfig; not with init_from", "a mapping such as {width: 256}"
    )
    init_from: str | None = _path("checkpoint directory or hub id to start from")
    layers: list[int] = field(
        [], "layers of init_from to start with, in this order; all if empty", "a list of numbers"
    )
    teacher: str | None = _path("directory or hub id of a model whose predictions are learnt too")
    teacher_digest: str | None = digest_field("of the teacher's weights, which refuses any others")
    teacher_share: float = field(
        0.8, "of the loss against the teacher; the rest is of the text", gt=0, le=1
    )
    shares_embedding: bool = field(
        False, "embedding and head are the teacher's, neither trained nor stored"
    )
    draft_vocabulary: int = _draft_vocabulary()
    features: str | None = _features()

    @pydantic.model_validator(mode="after")
    def _drafts_for_teacher(self) -> LanguageModelConfig:
        if (
            self.draft_vocabulary or self.shares_embedding or self.features
        ) and self.teacher is None:
            raise ValueError("a teacher, for which it drafts, with what only a drafter has")
        if self.layers and self.init_from is None:
            raise ValueError("init_from with layers, whose layers they are")
        return self


class ModelConfig(LanguageModelConfig):
    """Trains a causal language model."""

    kind: Literal["model"] = field("model", "what is trained")


class DiffusionTrainingConfig(LanguageModelConfig):
    """Trains a masked diffusion language model, such as one that drafts."""

    kind: Literal["diffusion"] = field("diffusion", "what is trained")
    text_attention: Literal["bidirectional", "causal"] = field(
        "bidirectional", "causal: text sees what comes before it; masks see it and each other"
    )
    mask_token: str = field("<|mask|>", "a new id where the tokenizer lacks it", min_length=1)
    is_shifted: bool = field(True, "row r predicts token r + 1, as in Dream; false: r, as in LLaDA")
    suffix_share: float = field(
        0.5, "of texts (or blocks) masked as a drafter sees them, not by chance", ge=0, le=1
    )
    k_max: int = count(8, "masks in a row, from 1 to so many")
    slot_decay: float = field(4.0, "gamma: the i-th mask weighs exp(-(i - 1) / gamma)", gt=0)
    weighting: Literal["elbo", "cart"] = field("elbo", "of chance: 1/t, or by clean neighbours")
    min_ratio: float = field(1e-3, "t, the share that is masked by chance, is above it", ge=0, lt=1)
    piece_lengths: list[int] = field(
        [64, 128], "tokens of the pieces that end in masks", "a list of integers above k_max"
    )
    n_blocks: int = count(32, "with causal text: pairs of blocks learnt beside a sequence")
    anneal_steps: int = count(0, "in which a causal model comes to see later tokens", low=0)

    @pydantic.model_validator(mode="after")
    def _long_pieces(self) -> DiffusionTrainingConfig:
        if not self.piece_lengths or min(self.piece_lengths) <= self.k_max:
            raise ValueError("piece_lengths that are each more than k_max")
        return self


class FalconConfig(LoopConfig, RunConfig):
    """Trains a Falcon drafter beside its frozen target."""

    kind: Literal["falcon"] = field("falcon", "what is trained")
    target: str = required("directory, GGUF file or id of the model it drafts for", "a path or id")
    target_digest: str | None = digest_field("of the target's weights, which refuses any others")
    init_from: str | None = _path("a trained head of the same sizes to go on from")
    embedding_gain: float = field(1.0, "factor on the first weights from embeddings", gt=0)
    reading_gain: float = field(
        0.0, "by how much heads score the last row of a block above others, at first", ge=0
    )
    block_size: int = count(2, "k, the tokens of a pass")
    n_layers: int = count(1, "attention blocks")
    n_kv_heads: int | None = count(None, "of the attention blocks; the target's if not given")
    mlp_width: int | None = count(None, "of the attention blocks; the target's if not given")
    lstm_mode: Literal["pointwise", "sequence"] = field("pointwise", "sequence: with a memory")
    glancing: bool = field(True, "distil in two passes; false: a plain shift")
    glance: Glance = field(Glance(), "positions that are shown")
    noise: float = field(0.2, "width of the noise on features of 512 tokens", ge=0)
    dropout: float = field(0.1, "of the LSTM's first layer", ge=0, lt=1)
    token_weight: float = field(0.1, "of the tokens' losses beside the features'", ge=0)
    soft_share: float = field(0.9, "of the soft loss beside the hard one", ge=0, le=1)
    has_loss_on_shown: bool = field(True, "learn positions that were shown")
    draft_vocabulary: int = _draft_vocabulary()
    features: str | None = _features()
    data: TruncatedDataConfig = required("text", "a mapping")


class NGramConfig(RunConfig):
    """Estimates an n-gram model: modified Kneser-Ney over token ids.

    Texts are counted whole, whatever their length; a corpus is repeated at most once.
    """

    kind: Literal["ngram"] = field("ngram", "what is made")
    tokenizer: str = required("directory or hub id of a tokenizer or of its model", "a path or id")
    order: int = count(3, "tokens of the longest n-grams")
    prune: int = count(0, "longest n-grams that occur no more often are left out", low=0)
    precision: Literal["float32", "fixed16"] = field("fixed16", "of logarithms in the file")
    arpa: bool = field(False, "write model.arpa too, words being token ids")


class TextsConfig(RunConfig):
    """Lets a model write texts: it continues the openings of corpora, for others to learn from."""

    kind: Literal["texts"] = field("texts", "what is made")
    target: str = required("directory, GGUF file or id of the model that writes", "a path or id")
    target_digest: str | None = digest_field("of its weights, which refuses any others")
    dtype: Literal["float32", "bfloat16"] = field("float32", "of weights and cache")
    weights: Literal["int8", "fp8", "int4", "bfloat16"] | None = field(
        None, "narrower type of the matrices"
    )
    n_texts: int = count(1000, "texts in all, spread over the corpora as an epoch has them")
    prompt_tokens: int = count(24, "tokens of a plain text that are its opening")
    max_new_tokens: int = count(256, "new tokens at most")
    temperatures: list[float] = field(
        [0.0, 0.7, 1.0], "taken in turn", f"a list of numbers, each {TEMPERATURES}"
    )
    batch_size: int = count(16, "texts written together; a multiple of mesh.data")
    mesh: MeshConfig = field(MeshConfig(), "devices along each axis", "axes")
    seed: int = seed_field("names the noise and the choice of openings")

    @field_validator("temperatures")
    @classmethod
    def _in_range(cls, value: list[float]) -> list[float]:
        if not value or not all(map(is_temperature, value)):
            raise ValueError("out of range")
        return value


def as_yaml(config: RunConfig) -> str:
    """Write a resolved config as the YAML that would be read as it."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


KINDS: dict[str, type[RunConfig]] = {
    "tokenizer": TokenizerConfig,
    "model": ModelConfig,
    "diffusion": DiffusionTrainingConfig,
    "falcon": FalconConfig,
    "ngram": NGramConfig,
    "texts": TextsConfig,
}
"""What `kind` may say."""
