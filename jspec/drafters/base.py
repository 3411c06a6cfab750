"""Define the contract of a drafter: four pure methods on a small static value.

See `docs/drafter.md`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Int

from jspec.law import Randomness
from jspec.models.model import Model
from jspec.state import Context, Draft, Params, Prompt, TargetOutput, Verdict

Named = TypeVar("Named", bound=enum.Enum)

DrafterState = Any
"""A pytree of arrays; every leaf has the rows on axis 0, so that one row can be replaced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftSize:
    """State the static shape of a draft.

    Attributes:
      n_nodes: M, the root included: rows of the target's forward.
      max_depth: no node is deeper.
      is_chain: node i always follows node i - 1, so an accepted path needs no compaction. Three
        nodes of depth at most 2 may also be a root with two children: it has to be said.
    """

    n_nodes: int
    max_depth: int
    is_chain: bool = False

    def __post_init__(self):
        if not 0 <= self.max_depth < self.n_nodes:
            raise ValueError(
                f"a draft of {self.n_nodes} nodes cannot be {self.max_depth} deep; "
                "depth must be at least 0 and below the number of nodes"
            )
        if self.is_chain and self.max_depth != self.n_nodes - 1:
            raise ValueError(
                f"a chain of {self.n_nodes} nodes is {self.n_nodes - 1} deep, not {self.max_depth}"
            )


def chain_size(depth: int) -> DraftSize:
    """Return the size of a chain of `depth` drafted tokens."""
    return DraftSize(n_nodes=1 + depth, max_depth=depth, is_chain=True)


class Drafter(Protocol):
    """Propose tokens for the target; implementations are frozen dataclasses without arrays.

    Attributes:
      sizes: the shapes its drafts may have. With several, the engine switches over the whole round.
      captures: names of the target's features that `init` and `commit` read.
      needs_picks: whether `commit` reads `TargetOutput.picks`.
    """

    @property
    def sizes(self) -> tuple[DraftSize, ...]: ...

    @property
    def captures(self) -> tuple[str, ...]: ...

    @property
    def needs_picks(self) -> bool: ...

    def init(self, params: Params, prompt: Prompt) -> DrafterState:
        """Return the state before the first round of the rows of `prompt`."""
        ...

    def size(self, state: DrafterState, context: Context) -> Int[Array, ""]:
        """Return an index into `sizes`: the largest that any active row wants."""
        ...

    def propose(
        self,
        params: Params,
        state: DrafterState,
        context: Context,
        randomness: Randomness,
        size: int,
    ) -> tuple[Draft, DrafterState]:
        """Propose a draft of shape `sizes[size]` for every row."""
        ...

    def commit(
        self,
        params: Params,
        state: DrafterState,
        context: Context,
        draft: Draft,
        verdict: Verdict,
        output: TargetOutput,
    ) -> DrafterState:
        """Return the state after a round; `context` is the text then. Inactive rows stay."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedDrafter:
    """Hold a drafter with its parameters, ready for the engine.

    Attributes:
      name: as the user names it, for records.
      drafter: the static value.
      params: its arrays; may share arrays with the target.
      loaded_for: the target's model; None where any may have it.
    """

    name: str
    drafter: Drafter
    params: Params
    loaded_for: Model | None = None

    def __repr__(self) -> str:
        return f"LoadedDrafter({self.name!r}, {described(self.drafter)})"


def described(drafter: Drafter) -> str:
    """Describe a static drafter in a few words: its class and its largest draft."""
    sizes = drafter.sizes
    nodes, depth = max(s.n_nodes for s in sizes), max(s.max_depth for s in sizes)
    return f"{type(drafter).__name__} of up to {nodes} nodes, {depth} deep"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrafterOptions:
    """Hold the options of a drafter by their names in configs; a default also tells the type.

    Those with an enumeration as default may be given by a member's value.

    Raises:
      ValueError: no member of this value.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            kind = type(field.default)
            if issubclass(kind, enum.Enum):
                member = named(kind, field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, member)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Say how one drafter of this package is configured and loaded.

    Attributes:
      options: a frozen dataclass whose fields are the drafter's options, validated when made.
      load: the path, the target and the options in; the drafter and its parameters out.
      needs: what its path leads to, as the error says where none is given; "" for no weights.
    """

    options: type[Any]
    load: Callable[[Any, Any, Any], tuple[Drafter, Params]]
    needs: str = ""


def named(kind: type[Named], option: str, name: object) -> Named:
    """Find the member of an enumeration that an option names.

    Raises:
      ValueError: there is none of this name.
    """
    try:
        return kind(name)
    except ValueError:
        known = ", ".join(str(one.value) for one in kind)
        raise ValueError(f"{option} must be one of {known}, got {name!r}") from None


def chain_draft(tokens: Int[Array, "B M"], is_valid, logprobs=None) -> Draft:
    """Make a chain: node i at depth i, node 0 the pending token.

    Args:
      tokens: the pending token, then the drafted ones.
      is_valid: `"B M"`; a prefix of each row, the root included.
    """
    depth = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    return Draft(
        token=tokens,
        parent=jnp.maximum(depth - 1, 0),
        depth=depth,
        is_valid=is_valid,
        is_acceptable=is_valid,
        logprobs=logprobs,
    )
