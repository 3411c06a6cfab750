"""Fit the tensors of a file to those that a config asks for.

In reading order: names as other savers write them; a head that a tied config does not expect;
layers beyond the config's; what is left, told all at once.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np

from jspec.checkpoints.gguf.file import is_gguf
from jspec.checkpoints.layouts import Layout
from jspec.checkpoints.tensor_files import Tensors
from jspec.errors import UserError
from jspec.models.config import DecoderConfig

logger = logging.getLogger(__name__)

_ROOT = "model."

_AROUND_ALL = ("module.", "base_model.model.", _ROOT)
"""What savers put in front of every name."""

_INSIDE = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What compiled and sharded modules add to names."""

_ROWS = 4096
"""How many rows of two matrices are compared at a time."""

_NAMES_SHOWN = 3

_BY_TOKEN = ("embed_tokens.weight", "lm_head.weight")
"""Weights with a row a token."""

_HINTS = (
    (r"\.(lora_[AB]|base_layer)\.", "an adapter's weights: merge them into the base model"),
    (
        r"\.(qweight|qzeros|weight_packed|weight_scale\w*|absmax|quant_map)$|\.SCB$",
        "quantised weights: give the original, in float32, float16 or bfloat16",
    ),
    (r"experts\.", "a mixture of experts, which is not supported"),
    (
        r"(visual|vision_\w+|audio_tower|language_model)\.",
        "a multimodal model: give its text decoder",
    ),
    (r"^(score|classifier|v_head)\.", "a model that scores texts: give a language model"),
)
"""Names that give away what a file holds, and what to do."""


def canonical(directory: Path, tensors: Tensors, layout: Layout) -> Tensors:
    """Rename tensors to the layout's names, however their saver wrapped the model.

    A base model that was saved without its head has no `model.` in front; a parallel or compiled
    one has more. Names that the layout does not know stay as they are.

    Raises:
      UserError: two names for one tensor.
    """
    renamed: Tensors = {}
    for name, plain in _without_wrappers(list(tensors)).items():
        full = next((n for n in (plain, _ROOT + plain) if _is_known(n, layout)), plain)
        if full in renamed:
            raise UserError(f"{directory}: two tensors of the name {full}; keep one")
        renamed[full] = tensors[name]
    return renamed


def _without_wrappers(names: list[str]) -> dict[str, str]:
    """Map each name in the file to the name without what stands in front of all of them."""
    plain = [_INSIDE.sub("", name) for name in names]
    for around in _AROUND_ALL * 2:  # wrapped twice at most
        if all(name.startswith(around) for name in plain):
            plain = [name.removeprefix(around) for name in plain]
    return dict(zip(names, plain, strict=True))


def _is_known(name: str, layout: Layout) -> bool:
    return name in layout.names.values() or name.startswith(layout.prefix.partition("{")[0])


def has_other_head(tensors: Tensors, layout: Layout) -> bool:
    """Tell whether a file has a head besides its embedding, with other numbers."""
    head, embedding = (
        tensors.get(layout.names["head_weight"]),
        tensors.get(layout.names["embedding"]),
    )
    if head is None or embedding is None:
        return False
    one, other = head.read(), embedding.read()
    return one.shape != other.shape or not all(
        np.array_equal(
            one[start : start + _ROWS].astype(np.float32),
            other[start : start + _ROWS].astype(np.float32),
            equal_nan=True,
        )
        for start in range(0, len(one), _ROWS)
    )


def fit(directory: Path, tensors: Tensors, layout: Layout, config: DecoderConfig) -> Tensors:
    """Leave out those canonical tensors that a config does not ask for.

    Layers beyond the config's are left out with a warning: a draft of the first layers is a config
    with a smaller number. A tied config may have its matrix under either name.
    """
    head, embedding = layout.names["head_weight"], layout.names["embedding"]
    if config.has_tied_head and head in tensors:
        tensors = {embedding: tensors[head]} | tensors
        del tensors[head]
    layers = {name: layout.layer_of(name) for name in tensors}
    surplus = {name: index for name, index in layers.items() if index >= config.n_layers}
    if surplus:
        logger.warning(
            "%s: the weights have %d layers, %s asks for %d: the first %d are used",
            directory,
            max(surplus.values()) + 1,
            "the metadata" if is_gguf(directory) else "config.json",
            config.n_layers,
            config.n_layers,
        )
    return {name: tensor for name, tensor in tensors.items() if name not in surplus}


def check_tensors(
    directory: Path,
    tensors: Tensors,
    shapes: dict[str, tuple[int, ...]],
    layout: Layout | None = None,
) -> None:
    """Refuse tensors that are not the expected ones, told all at once.

    Args:
      shapes: of the expected tensors, by name.
      layout: names those that may be there besides, and the layer of each.

    Raises:
      UserError: missing, unexpected or misshapen tensors.
    """
    faults = []
    missing = [name for name in shapes if name not in tensors]
    if missing:
        faults.append(f"missing {_some(missing)}")
    harmless = () if layout is None else layout.harmless
    unexpected = [name for name in tensors if name not in shapes and not name.endswith(harmless)]
    if unexpected:
        faults.append(f"unexpected {_some(unexpected)}")
    given = {name: tensors[name].shape for name in shapes if name in tensors}
    wrong = {name: shape for name, shape in given.items() if shape != shapes[name]}
    if wrong:
        told = [f"{name} {list(wrong[name])} instead of {list(shapes[name])}" for name in wrong]
        faults.append(f"wrong shapes: {_some(told)}")
    if not faults:
        return
    remedy = _remedy(list(shapes), missing, unexpected, wrong, layout)
    config = "config.json"
    if is_gguf(directory):
        config, remedy = "its metadata", "give a file of a decoder that is converted as it was made"
    raise UserError(f"{directory}: the tensors do not fit {config}: {'; '.join(faults)}; {remedy}")


def _remedy(
    expected: list[str],
    missing: list[str],
    unexpected: list[str],
    wrong: dict[str, tuple[int, ...]],
    layout: Layout | None,
) -> str:
    """Say what to do: what the names give away, else what most often leads there."""
    for pattern, what in _HINTS:
        if any(re.search(pattern, name) for name in unexpected):
            return f"these look like {what}"
    if missing == ["lm_head.weight"]:
        return (
            "give a checkpoint with its language-model head, or set tie_word_embeddings to true "
            "where the head is the embedding"
        )
    if any(0 in shape for shape in wrong.values()):
        return "it was saved without its values, as shards of a training are: gather and save again"
    if wrong and not missing and all(name.endswith(_BY_TOKEN) for name in wrong):
        rows = next(iter(wrong.values()))[0] if all(map(len, wrong.values())) else 0
        return (
            f"set vocab_size to {rows} if the vocabulary was changed, or give its own config.json"
        )
    if missing and unexpected and missing == expected:
        return (
            "these are another library's names: write it with save_pretrained of transformers, "
            "and give that directory"
        )
    layers = {name: -1 if layout is None else layout.layer_of(name) for name in expected}
    n_layers = min((layers[name] for name in missing), default=0)
    if n_layers > 0 and len(missing) == sum(layer >= n_layers for layer in layers.values()):
        return (
            f"the weights have {n_layers} layers: give the complete checkpoint, or set "
            f"num_hidden_layers to {n_layers}"
        )
    if unexpected and not missing and not wrong:
        return "this model has no such tensors: remove them, or give the config.json they belong to"
    return "give the complete checkpoint of this config"


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    shown = ", ".join(names[:_NAMES_SHOWN])
    return f"{len(names)} tensors ({shown}{f' and {rest} more' if rest > 0 else ''})"
