"""Tell directories, files and configs that are no checkpoint of a decoder for what they are.

In reading order: directories and files, by the names in them; a `config.json`, by its fields.
Nothing here is read but small JSON files. Every phrase ends with what to do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jspec.text_files import read_text

_CONVERT = "give the original in safetensors, or convert it"

_KINDS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("adapter_config.json", "adapter_model.*"),
        "a PEFT adapter{base}",
        "merge it into its base model (merge_and_unload, then save_pretrained) and give that",
    ),
    (("model_index.json",), "a diffusers pipeline", "give a language model"),
    (
        ("modules.json", "config_sentence_transformers.json"),
        "a sentence-transformers model, which embeds texts",
        "give a language model",
    ),
    (("*.gguf",), "the directory of a GGUF model", "give the .gguf file itself"),
    (
        ("consolidated.*.pth", "consolidated.pth"),
        "Meta's own format",
        "give its Hugging Face directory (on the hub often named -hf), or convert it",
    ),
    (("consolidated*.safetensors",), "Mistral's own format", "give its Hugging Face directory"),
    (("tf_model*.h5", "*.keras"), "TensorFlow weights alone", _CONVERT),
    (("flax_model*.msgpack",), "Flax weights alone", _CONVERT),
    (("*.onnx", "onnx/*.onnx"), "an ONNX model", "give the original in safetensors"),
    (("openvino_model.xml",), "an OpenVINO model", "give the original in safetensors"),
    (
        ("rank*.engine", "rank*.safetensors", "model-rank-*"),
        "shards made for another engine",
        "give the original in safetensors",
    ),
    (("weights*.npz",), "an MLX model", "give the original in safetensors"),
    (
        ("ngram.safetensors",),
        "an n-gram model, which only scores drafts",
        "give it as a drafter's proxy, and a language model here",
    ),
    (
        ("zero_to_fp32.py", "global_step*"),
        "a DeepSpeed checkpoint",
        "run its zero_to_fp32.py with "
        "--safe_serialization and give what that writes, beside the model's config.json",
    ),
    (
        (".metadata", "*.distcp", "*/*.distcp"),
        "a sharded training checkpoint of torch",
        "merge it (accelerate merge-weights) and give that, beside the model's config.json",
    ),
    (
        ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"),
        "an Orbax checkpoint",
        "give the model directory that was exported from it",
    ),
    (
        ("*.ckpt", "*.pth", "*.pt"),
        "a training script's own file",
        "save the model with save_pretrained and give that directory",
    ),
    (
        ("*.incomplete", ".cache/huggingface/download/*.incomplete"),
        "an unfinished download",
        "start it again",
    ),
)
"""Names that give a kind away, what it is, what to do; the first that is there is told."""

_MOST_FILES = 4


def what_else(directory: Path) -> str:
    """Say what a directory without a model is, and what to do; for the end of a message."""
    for names, what, remedy in _KINDS:
        if any(next(directory.glob(name), None) for name in names):
            return f"this is {what.format(base=_base(directory))}: {remedy}"
    models = _model_directories(directory)
    if models:
        return f"it holds {_listed(models)}: give {'that' if len(models) == 1 else 'one of them'}"
    files = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    if not files:
        return "the directory is empty: give a model's directory"
    return f"there is only {_listed(files)}: give a model's directory"


def looks_like_a_decoder(directory: Path, values: Mapping[str, Any]) -> str | None:
    """Say what a directory is whose `config.json` alone could be a decoder's."""
    if (directory / "modules.json").is_file():
        return what_else(directory)
    if "k_mask" in values:
        return "this is a drafter's head (k_mask): give it as the drafter, and its target here"
    return None


def what_file(path: Path) -> str:
    """Say what a file is that was given in place of a directory, and what to do."""
    if (path.parent / "config.json").is_file():
        return f"a file; give the checkpoint directory that holds it: {path.parent}"
    return "a file; give the checkpoint directory that holds config.json, or a .gguf file"


def _model_directories(directory: Path) -> list[str]:
    """Find models at most three folders down: runs, snapshots, a trainer's checkpoints."""
    patterns = ("*/config.json", "snapshots/*/config.json", "models--*/snapshots/*/config.json")
    found: Iterable[Path] = (path for pattern in patterns for path in directory.glob(pattern))
    return sorted(str(path.parent.relative_to(directory)) for path in found)


def _listed(names: list[str]) -> str:
    rest = len(names) - _MOST_FILES
    return ", ".join(names[:_MOST_FILES]) + (f" and {rest} more" if rest > 0 else "")


def _base(directory: Path) -> str:
    try:
        values = json.loads(read_text(directory / "adapter_config.json"))
        return f" of {values['base_model_name_or_path']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


_NESTED = ("text_config", "vision_config", "audio_config", "language_config", "thinker_config")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
_ENCODERS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "BertModel")


def kind_of_config(values: Mapping[str, Any]) -> str | None:
    """Say what a `config.json` of an unknown model type describes, where that can be told."""
    architectures = values.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if values.get("is_encoder_decoder") or any("ConditionalGeneration" in n for n in names):
        is_multimodal = any(isinstance(values.get(name), dict) for name in _NESTED)
        return "a multimodal model" if is_multimodal else "an encoder and a decoder"
    if any(isinstance(values.get(name), dict) for name in _NESTED):
        return "a multimodal model, whose text part is nested"
    if any(values.get(name) for name in _EXPERTS):
        return "a mixture of experts"
    if any(name.endswith(_ENCODERS) for name in names):
        return "an encoder"
    return None


def quantisation_of(values: Mapping[str, Any]) -> str | None:
    """Find how a `config.json` says that weights are quantised; None where they are not."""
    for name in ("quantization_config", "compression_config", "quantization"):
        given = values.get(name)
        if given:
            method = given.get("quant_method") if isinstance(given, dict) else None
            return f"{name}: {method}" if method else name
    return None
