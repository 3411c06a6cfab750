"""The token picture: each token of a text in the colour of how it came, and the trees behind it.

The text is plain markup, readable without the script. The script adds the tooltip, the selectors,
and the drawing of a round's draft tree, at places that are computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jspec.bench.report.colours import PLAIN, Mark
from jspec.bench.report.markup import data, element, text
from jspec.bench.summary import counted

Record = Mapping[str, Any]

DEEPEST = 8
"""Steps of the colour ramp; tokens from further down share the last."""

VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(token: str) -> str:
    """A token's text with white space that can be seen; `∅` where it has none of its own.

    A token's leading space stays a space, its background shows it; one of spaces alone has dots.
    """
    if not token:
        return "∅"
    if token.isspace():
        token = token.replace(" ", "·")
    return "".join(VISIBLE.get(character, character) for character in token)


def token_markup(index: int, token: Record, starts: bool) -> str:
    """One token; a line break follows those that hold one, so the text keeps its lines."""
    depth = min(token["depth"], DEEPEST)
    broken = "\n" * token["text"].count("\n")
    span = element(
        "span",
        text(visible(token["text"])),
        class_=f"token depth-{depth}" + (" starts" if starts else ""),
        data_index=index,
        role="button",
        tabindex=0 if index == 0 else -1,
    )
    return span + broken


def passage(picture: Record, place: int) -> str:
    """The prompt, folded, and the generated text."""
    tokens = picture["tokens"]
    before = [None, *(t["round"] for t in tokens)]
    marked = (t["round"] != b for t, b in zip(tokens, before, strict=False))
    spans = "".join(
        token_markup(i, t, starts) for i, (t, starts) in enumerate(zip(tokens, marked, strict=True))
    )
    prompt = element("summary", "prompt") + element("pre", text(picture["prompt_text"]))
    body = element("details", prompt, class_="prompt") + element("p", told(picture), class_="told")
    label = f"text of {picture['contestant']}, {where(picture)}"
    body += element("div", spans, class_="tokens", role="group", aria_label=label)
    return element("div", body, class_="passage", data_place=place, hidden=place > 0)


def told(picture: Record) -> str:
    """How many tokens came which way."""
    tokens = picture["tokens"]
    kept = sum(t["depth"] > 0 for t in tokens)
    rounds = len({t["round"] for t in tokens})
    if picture["contestant"] == PLAIN:
        return f"{counted(len(tokens), 'token')}, one call of the target each"
    return text(
        f"{counted(len(tokens), 'token')} in {counted(rounds, 'round')}: {kept} drafted and kept, "
        f"{len(tokens) - kept} the target's own"
    )


def where(picture: Record) -> str:
    """Names a prompt and its temperature."""
    return f"{picture['category']} {picture['prompt_id']}, T = {picture['temperature']:g}"


def laid_out(nodes: Sequence[Record]) -> list[int]:
    """A row for each node, so that no two of a depth share one and children stand near.

    A first child keeps its parent's row, every other one opens a new row. Nodes whose parent is not
    in the list hang from the root.
    """
    children: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        parent = -1 if node["parent"] is None else int(node["parent"])
        is_inner = 0 <= parent < len(nodes) and parent != i
        children.setdefault(parent if is_inner else -1, []).append(i)
    rows = [0] * len(nodes)

    def place(i: int, row: int) -> int:
        """Give a node its row and its descendants theirs; the last row in use comes back."""
        rows[i] = last = row
        for k, child in enumerate(children.get(i, ())):
            last = place(child, row if k == 0 else last + 1)
        return last

    last = -1
    for root in children.get(-1, ()):
        last = place(root, last + 1)
    return rows


def round_data(entry: Record) -> dict[str, Any]:
    """A round for the script: nodes as [text, depth, row, parent, kept]."""
    nodes = entry["nodes"]
    rows = laid_out(nodes)
    return {
        "kept": entry["n_accepted"],
        "nodes": [
            [
                visible(node["text"]),
                node["depth"],
                row,
                -1 if node["parent"] is None else node["parent"],
                int(bool(node["is_accepted"])),
            ]
            for node, row in zip(nodes, rows, strict=True)
        ],
    }


def picture_data(picture: Record) -> dict[str, Any]:
    """What the script knows of a picture; tokens as [text, depth, rank, logprob, gap, round]."""
    keys = ("depth", "rank", "logprob", "gap", "round")
    return {
        "contestant": picture["contestant"],
        "where": where(picture),
        "tokens": [
            [visible(t["text"]), *(finite(t.get(key)) for key in keys)] for t in picture["tokens"]
        ],
        "rounds": {str(r["round"]): round_data(r) for r in picture["rounds"]},
    }


def finite(value: float | None) -> float | None:
    """A number short enough for the page; nothing for what JSON cannot say."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return round(value, 4)


def key(deepest: int) -> str:
    """What the colours mean."""
    swatches = [element("span", "the target's own", class_="token depth-0")]
    for depth in range(1, min(deepest, DEEPEST) + 1):
        name = f"depth {depth}" + (" and deeper" if depth == DEEPEST < deepest else "")
        swatches.append(element("span", name, class_=f"token depth-{depth}"))
    swatches.append(element("span", "a round begins", class_="token starts depth-0"))
    return element("p", " ".join(swatches), class_="key")


def token_pictures(pictures: Sequence[Record], looks: Mapping[str, Mark]) -> str:
    """The whole part of the page: selectors, key, texts, tree; nothing without pictures."""
    pictures = [p for p in pictures if p["tokens"]]
    if not pictures:
        return ""
    order = list(looks)
    pictures.sort(key=lambda p: (p["contestant"] == PLAIN, order.index(p["contestant"])))
    names = dict.fromkeys(p["contestant"] for p in pictures)
    places = dict.fromkeys(where(p) for p in pictures)
    selectors = selector("contestant", names) + selector("text", places)
    depths = (t["depth"] for p in pictures for t in p["tokens"])
    texts = "".join(passage(p, i) for i, p in enumerate(pictures))
    missing = element("p", "Not recorded for this contestant.", class_="missing", hidden=True)
    tree = element(
        "div", "", id="tree", class_="scroll", tabindex=0, role="region", aria_label="draft tree"
    )
    hint = element("p", "Choose a token to see the draft of its round.", id="tree-title")
    panel = element("div", hint + tree, class_="panel", aria_live="polite")
    tip = element("div", "", id="tip", role="tooltip", hidden=True)
    reading = element("div", texts + missing, class_="reading")
    body = element("div", reading + panel, class_="beside")
    head = element("div", selectors, class_="selectors")
    known = [picture_data(p) for p in pictures]
    return head + key(max(depths)) + body + tip + data("pictures", known)


def selector(name: str, options: Mapping[str, None]) -> str:
    """A labelled choice."""
    body = "".join(element("option", text(option), value=option) for option in options)
    return element("label", f"{text(name)} " + element("select", body, id=f"choose-{name}"))
