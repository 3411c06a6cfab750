"""Text into HTML: escaping, elements, numbers, and data for the page's script.

Whatever comes from a record is escaped here, once: `element` and `table` take markup in their
bodies, `text` makes markup of anything.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

SCRIPT_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028"}
"""What could end a script element or a line of it; inside JSON strings the two forms are equal."""

ABSENT = "–"
"""Stands for a number that nobody measured."""


def text(value: object) -> str:
    """Any value as markup: nothing in it is a tag, an entity or the end of an attribute."""
    return html.escape(str(value), quote=True)


def element(name: str, body: str = "", **attributes: object) -> str:
    """One element. Attribute names lose a trailing underscore, and inner ones become hyphens.

    Args:
      name: of the tag.
      body: markup, as it is.
      **attributes: escaped here; `True` writes the bare name, `None` and `False` leave it out.
    """
    written = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(f" {key}")
        elif value is not None and value is not False:
            written.append(f' {key}="{text(value)}"')
    return f"<{name}{''.join(written)}>{body}</{name}>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str) -> str:
    """A table in a box that scrolls by itself, so that the page never does.

    Args:
      head: markup of the column heads.
      rows: markup of the cells; the first of a row is its head.
      label: what a screen reader says of the box.
    """
    top = "".join(element("th", cell, scope="col") for cell in head)
    body = "".join(
        element(
            "tr",
            element("th", row[0], scope="row") + "".join(element("td", c) for c in row[1:]),
        )
        for row in rows
    )
    inner = element("thead", element("tr", top)) + element("tbody", body)
    box = element("table", inner)
    return element("div", box, class_="scroll", tabindex=0, role="region", aria_label=label)


def section(name: str, title: str, body: str, *, lead: str = "") -> str:
    """A titled part of the page with an anchor; nothing where the body is empty."""
    if not body:
        return ""
    intro = element("p", lead, class_="lead") if lead else ""
    heading = element("h2", text(title), id=f"{name}-title")
    return element("section", heading + intro + body, id=name, aria_labelledby=f"{name}-title")


def data(name: str, value: Any) -> str:
    """A value for the script to read: JSON that no text inside it can break out of."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in SCRIPT_ESCAPES.items():
        written = written.replace(character, escape)
    return f'<script type="application/json" id="{text(name)}">{written}</script>'


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A number for people, or a dash where there is none."""
    return ABSENT if value is None else f"{value:.{digits}f}{unit}"


def sentence(words: str) -> str:
    """Words with a capital letter before them and a full stop behind."""
    return words[:1].upper() + words[1:] + "."


def percent(value: float | None) -> str:
    """A share for people, to whole hundredths."""
    return ABSENT if value is None else f"{100 * value:.0f} %"


def signed_percent(value: float | None) -> str:
    """A relative difference for people, with its sign."""
    return ABSENT if value is None else f"{100 * value:+.0f} %".replace("-", "−")
