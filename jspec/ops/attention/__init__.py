"""Attention of new rows over a cache, and over whole texts in training.

One function of the new rows, in two forms. Written first (`masked`): rows are written to the cache,
then one masked pass reads every slot; it always works, and equal shapes give equal bits. Apart
(`apart`): the slots before the round are read by a back end that stops where the text does, the
round's own rows by a small product, and the two are merged; rows need not be written before.

`choose` says which form a call takes. Back ends of the second form, one a file, each with the same
`attend_prefix` and a `check` that raises NotImplementedError where it does not fit:

| file | where | what reads the prefix |
|---|---|---|
| `tpu` | TPU | a Pallas kernel |
| `cudnn` | GPU, bfloat16 and float16 | cuDNN's attention, in parts that lie side by side |
| `blocks` | anywhere, for many new rows (prompts) | a loop over blocks of live slots |
"""

from typing import TYPE_CHECKING

from jspec.lazy import submodules
from jspec.ops.attention.apart import Apart, attend_apart, choose
from jspec.ops.attention.masked import attend
from jspec.ops.attention.partial import AttentionShape
from jspec.ops.attention.text import attend_text

__all__ = [
    "Apart",
    "AttentionShape",
    "attend",
    "attend_apart",
    "attend_text",
    "choose",
]

if not TYPE_CHECKING:
    __getattr__ = submodules(__name__)
