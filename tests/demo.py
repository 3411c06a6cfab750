"""Whether the demo's weights are here; what needs them is skipped with a reason otherwise."""

from jspec.models.shipped import shipped

SHIPPED = all(shipped(f"demo/{name}") for name in ("target", "draft", "draft-deep"))
