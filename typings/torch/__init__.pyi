# torch is optional, and types are checked without it: everything in it is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
