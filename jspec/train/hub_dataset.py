"""Splits of Hugging Face datasets as corpora, through the library `datasets` (extra `data`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from jspec.errors import UserError


@dataclasses.dataclass(frozen=True)
class HubDataset:
    """A split of a dataset.

    Attributes:
      path: a hub id, or a folder of data files.
      split: which, also a slice such as `train[:1000]`.
      subset: the dataset's configuration, where it has several.
    """

    path: str
    split: str = "train"
    subset: str | None = None

    def __str__(self) -> str:
        return f"dataset {self.path} ({self.split})"

    @property
    def name(self) -> str:
        """How the corpus is called in metrics: the last part of its path."""
        return self.path.rstrip("/").split("/")[-1]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows as they are stored.

        Raises:
          UserError: the library is not installed, or it cannot load the split.
        """
        yield from self._load()

    def fingerprint(self) -> str:
        """Names the content; raises as `rows` does."""
        return self._load()._fingerprint

    def _load(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise UserError(
                f"{self} needs the library datasets; run pip install 'jspec-decoding[data]', or "
                "give a file"
            ) from None
        try:
            return datasets.load_dataset(self.path, self.subset, split=self.split)
        except Exception as error:  # its own errors, the hub's and those of file formats
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self}: cannot be loaded ({reason})") from None
