"""What type checkers must see of jspec; `make lint` reads this file, nothing runs it.

An ignored error that is none any more is an error itself, so each comment below is an assertion.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=error

import jspec
from jspec import genrate  # pyright: ignore[reportAttributeAccessIssue]  # noqa: F401

jspec.genrate  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018
jspec.models.shiped  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


def typed(target: jspec.Target, loaded: jspec.LoadedDrafter) -> list[str]:
    """The exported names have their types."""
    answers: list[jspec.Generation] = jspec.generate(target, ["a"], max_new_tokens=1)
    jspec.generate(target, "a", max_newtokens=1)  # pyright: ignore[reportCallIssue]
    jspec.stream(target, ["a"])  # pyright: ignore[reportCallIssue]
    jspec.Program(target=target.model, drafter=loaded)  # pyright: ignore[reportArgumentType]
    mode: jspec.law.Mode = jspec.law.Mode.FULL
    return [*(answer.text or "" for answer in answers), mode.value, jspec.__version__]
