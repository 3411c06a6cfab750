from typing import Any

config: Any

def load_dataset(path: str, name: str | None = None, *, split: str) -> Any: ...
