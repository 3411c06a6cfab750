"""The token pictures: each token of a text in the colour of how it came, and each round's draft.

`pictures_of` turns records into what the template shows. The page holds all of them; its script
shows one at a time, with the draft of one round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jspec.bench.summary import PLAIN, counted

Record = Mapping[str, Any]

VISIBLE = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(token: str) -> str:
    """Return a token's text with white space that can be seen; `∅` where it has none of its own.

    A token's leading space stays a space, its background shows it; one of spaces alone has dots.
    """
    if not token:
        return "∅"
    if token.isspace():
        token = token.replace(" ", "·")
    return "".join(VISIBLE.get(character, character) for character in token)


def pictures_of(records: Iterable[Record], order: Sequence[str]) -> list[dict[str, Any]]:
    """Prepare all pictures, text by text, plain decoding's last.

    Args:
      order: all contestants.
    """
    found = [picture_of(r) for r in records if r["kind"] == "picture" and r["tokens"]]
    texts = list(dict.fromkeys(picture["text"] for picture in found))

    def place(picture: Record) -> tuple[int, bool, int]:
        contestant = picture["contestant"]
        return texts.index(picture["text"]), contestant == PLAIN, order.index(contestant)

    return sorted(found, key=place)


def picture_of(record: Record) -> dict[str, Any]:
    """Prepare one text: its tokens, its rounds, and the token that is chosen at first."""
    tokens = record["tokens"]
    numbers = [token["round"] for token in tokens]
    rounds = {number: {"nodes": (), "n_accepted": 0} for number in numbers}
    rounds |= {r["round"]: r for r in record["rounds"] if r["round"] in rounds}
    fullest = max(rounds, key=lambda number: rounds[number]["n_accepted"])
    kept = sum(token["depth"] > 0 for token in tokens)
    story = f"{counted(len(tokens), 'token')}, one call of the target each"
    if record["contestant"] != PLAIN:
        story = (
            f"{counted(len(tokens), 'token')} in {counted(len(rounds), 'round')}: {kept} drafted "
            f"and kept, {len(tokens) - kept} the target's own"
        )
    return {
        "contestant": record["contestant"],
        "text": f"{record['category']} {record['prompt_id']}, T = {record['temperature']:g}",
        "prompt": record["prompt_text"],
        "story": story,
        "first": numbers.index(fullest),
        "tokens": [
            {
                **{"text": visible(token["text"]), "breaks": "\n" * token["text"].count("\n")},
                **{"depth": token["depth"], "round": token["round"], "about": about(token)},
                "starts": token["round"] != before,
            }
            for token, before in zip(tokens, [None, *numbers], strict=False)
        ],
        "rounds": [(n, outcome(n, one), nodes_of(one)) for n, one in rounds.items()],
    }


def about(token: Record) -> str:
    """Say how a token came, a fact a line."""
    lines = [f"“{visible(token['text'])}”", "the target's own"]
    if token["depth"]:
        lines[1] = f"drafted, kept at depth {token['depth']}"
        if token.get("rank") is not None:
            lines.append(f"the drafter's choice no. {token['rank'] + 1}")
    logprob, gap = token.get("logprob"), token.get("gap")
    if logprob is not None and not math.isnan(logprob):
        lines.append(f"probability {100 * math.exp(logprob):.3g} %")
    if gap is not None and math.isfinite(gap):
        lines.append(f"score above the runner-up {gap:.2f}")
    return "\n".join([*lines, f"round {token['round']}"])


def outcome(number: int, one: Record) -> str:
    """Say what became of a round's draft."""
    drafted = sum(node["depth"] > 0 for node in one["nodes"])
    if not drafted:
        return f"Round {number}: nothing was drafted; the token is the target's own."
    kept = f"{one['n_accepted']} of {counted(drafted, 'drafted token')} kept"
    return f"Round {number}: {kept}, then one of the target's own."


def nodes_of(one: Record) -> list[tuple[int, int, bool, str]]:
    """List a draft's nodes as (place, place of the parent or -1, whether kept, text)."""
    found = []
    for place, node in enumerate(one["nodes"]):
        seen = visible(node["text"])
        word = seen.lstrip(" ")
        dots = "·" * (len(seen) - len(word))  # at the left of a box, spaces would be lost
        parent = -1 if node["parent"] is None else node["parent"]
        found.append((place, parent, node["is_accepted"], dots + word))
    return found
