"""What a first look measures, by the kind of machine: shapes and sizes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """What is measured on a kind of machine; shapes are names of `SHAPES`.

    Attributes:
      target, contexts, rows, nodes: over which r(n) is measured, and products, attention (which has
        the heads of `series`) and filters (its vocabulary); Falcon's target, too.
      tree: of Falcon, after the first context.
      verifier, diffusion, lengths, texts: of DiffuSpec: shapes of target and drafter, masks of a
        round, and tokens of text.
      series, sizes, widths, passes_after: of EasySpec: shape of the drafter, layers a group, new
        rows of a pass, and tokens of text before it.
    """

    dtype: str = "float32"
    target: str
    contexts: tuple[int, ...]
    rows: tuple[int, ...] = (1, 4)
    nodes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    tree: str = "chain-4"
    verifier: str
    diffusion: str
    lengths: tuple[int, ...]
    texts: tuple[int, ...]
    series: str
    sizes: tuple[int, ...]
    widths: tuple[int, ...] = (1, 12)
    passes_after: tuple[int, ...]


PROFILES = {
    "gpu": Profile(
        dtype="bfloat16",
        target="7b",
        contexts=(2048, 8000),
        rows=(1, 8),
        nodes=(1, 8, 26, 64),
        tree="kmask2_8layer_tree",
        verifier="qwen2.5-7b",
        diffusion="dream-7b",
        lengths=(20, 25, 30),
        texts=(256, 1024, 2048),
        series="llama3-8b",
        sizes=(2, 4, 8),
        passes_after=(256, 1024),
    ),
    "small": Profile(
        dtype="bfloat16",
        target="llama3-1b",
        contexts=(2048,),
        rows=(1, 8),
        nodes=(1, 8, 26, 64),
        tree="kmask2_8layer_tree",
        verifier="llama3-1b",
        diffusion="demo-diffusion",
        lengths=(5,),
        texts=(256,),
        series="llama3-1b",
        sizes=(2, 4),
        passes_after=(256, 1024),
    ),
    "cpu": Profile(
        target="wide-14m",
        contexts=(128, 512),
        verifier="demo-target",
        diffusion="demo-diffusion",
        lengths=(5,),
        texts=(128, 512, 1024),
        series="demo-draft-deep",
        sizes=(2, 3, 6),
        passes_after=(256,),
    ),
    "tiny": Profile(
        target="tiny",
        contexts=(32,),
        rows=(1,),
        nodes=(1, 4),
        verifier="tiny",
        diffusion="tiny-dream",
        lengths=(2,),
        texts=(16,),
        series="tiny-deep",
        sizes=(2,),
        widths=(1,),
        passes_after=(16,),
    ),
}
"""By name: accelerators of 80 GB and of 16, a CPU with the demo's shapes, a check that all runs."""
