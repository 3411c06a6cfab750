"""Shapes of well known checkpoints, for planning where neither their files nor a network are.

Only for what needs no weights, such as compiling ahead of time; whoever loads a model reads its
own `config.json`.

Source: the `config.json` of each repository on the hub.
"""

from __future__ import annotations

import dataclasses

from jspec.models.config import DecoderConfig, Rope, RopeKind


def _llama(vocab: int, sizes: tuple[int, ...], length: int, **more) -> DecoderConfig:
    """Build a config; `sizes` are width, MLP width, layers, query and key/value heads."""
    width, mlp_width, n_layers, n_heads, n_kv_heads = sizes
    fields = {"norm_eps": 1e-5, "head_dim": width // n_heads} | more
    return DecoderConfig(
        vocab_size=vocab,
        width=width,
        mlp_width=mlp_width,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        max_positions=length,
        **fields,
    )


def _llama3(sizes: tuple[int, ...], factor: float | None = 8.0, **more) -> DecoderConfig:
    """Build Llama 3 where there is no `factor`, else 3.1 and later."""
    if factor is None:
        return _llama(128_256, sizes, 8192, rope=Rope(theta=500_000.0), **more)
    rope = Rope(
        kind=RopeKind.LLAMA3,
        theta=500_000.0,
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_length=8192,
    )
    return _llama(128_256, sizes, 131_072, rope=rope, **more)


def _qwen2(vocab: int, sizes: tuple[int, ...], length: int = 32_768, **more) -> DecoderConfig:
    fields = {"norm_eps": 1e-6} | more
    rope = Rope(theta=1_000_000.0)
    return _llama(vocab, sizes, length, family="qwen2", rope=rope, has_qkv_bias=True, **fields)


_7B = (4096, 11008, 32, 32, 32)
_8B = (4096, 14336, 32, 32, 8)
_70B = (8192, 28672, 80, 64, 8)
_QWEN_72B = (8192, 29568, 80, 64, 8)
_LLAMA3_1B = _llama3((2048, 8192, 16, 32, 8), 32.0, has_tied_head=True)
_LLAMA3_3B = _llama3((3072, 8192, 28, 24, 8), 32.0, has_tied_head=True)
_QWEN_7B = (3584, 18944, 28, 28, 4)
_QWEN_32B = _qwen2(152_064, (5120, 27648, 64, 40, 8))
_DREAM_7B = dataclasses.replace(_qwen2(152_064, _QWEN_7B, 131_072), family="Dream", is_causal=False)
_LLADA_8B = _llama(
    126_464,
    (4096, 12288, 32, 32, 32),
    4096,
    family="llada",
    rope=Rope(theta=500_000.0),
    is_causal=False,
)
_MISTRAL_7B = {"family": "mistral", "rope": Rope(theta=1_000_000.0)}

KNOWN: dict[str, DecoderConfig] = {
    "lmsys/vicuna-7b-v1.5": _llama(32_000, _7B, 4096),
    "lmsys/vicuna-13b-v1.5": _llama(32_000, (5120, 13824, 40, 40, 40), 4096),
    "meta-llama/Llama-2-7b-chat-hf": _llama(32_000, _7B, 4096),
    "meta-llama/Llama-2-13b-chat-hf": _llama(32_000, (5120, 13824, 40, 40, 40), 4096),
    "meta-llama/Llama-2-70b-chat-hf": _llama(32_000, _70B, 4096),
    "meta-llama/Meta-Llama-3-8B-Instruct": _llama3(_8B, None),
    "meta-llama/Meta-Llama-3-70B-Instruct": _llama3(_70B, None),
    "meta-llama/Llama-3.1-8B": _llama3(_8B),
    "meta-llama/Llama-3.1-8B-Instruct": _llama3(_8B),
    "meta-llama/Llama-3.1-70B": _llama3(_70B),
    "meta-llama/Llama-3.1-70B-Instruct": _llama3(_70B),
    "meta-llama/Llama-3.3-70B-Instruct": _llama3(_70B),
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA3_1B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA3_3B,
    "mistralai/Mistral-7B-Instruct-v0.2": _llama(32_000, _8B, 32_768, **_MISTRAL_7B),
    "mistralai/Mistral-7B-Instruct-v0.3": _llama(32_768, _8B, 32_768, **_MISTRAL_7B),
    "Qwen/Qwen2-7B-Instruct": _qwen2(152_064, _QWEN_7B),
    "Qwen/Qwen2-72B-Instruct": _qwen2(152_064, _QWEN_72B),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(151_936, (896, 4864, 24, 14, 2), has_tied_head=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(151_936, (1536, 8960, 28, 12, 2), has_tied_head=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(152_064, _QWEN_7B),
    "Qwen/Qwen2.5-32B": dataclasses.replace(_QWEN_32B, max_positions=131_072),
    "Qwen/Qwen2.5-32B-Instruct": _QWEN_32B,
    "Qwen/Qwen2.5-72B-Instruct": _qwen2(152_064, _QWEN_72B),
    "Dream-org/Dream-v0-Base-7B": _DREAM_7B,
    "Dream-org/Dream-v0-Instruct-7B": _DREAM_7B,
    "GSAI-ML/LLaDA-8B-Base": _LLADA_8B,
    "GSAI-ML/LLaDA-8B-Instruct": _LLADA_8B,
}
"""By hub id."""

MASK_IDS = {
    "Dream-org/Dream-v0-Base-7B": 151_666,
    "Dream-org/Dream-v0-Instruct-7B": 151_666,
    "GSAI-ML/LLaDA-8B-Base": 126_336,
    "GSAI-ML/LLaDA-8B-Instruct": 126_336,
}
"""The mask's id in those that are diffusion models."""
