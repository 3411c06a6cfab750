"""The report of synthetic records: it stands alone, escapes texts, leaves out what is absent."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from markupsafe import Markup, escape

from jspec.bench.report.charts import INK
from jspec.bench.report.looks import looks_of
from jspec.bench.report.page import page

DRAFTERS = {"lookup 4": 0.55, "draft 3": 0.7, "tree 3x2": 0.8}
"""Labels, and how often a drafted token is kept; synthetic, as all numbers here."""

CATEGORIES = {"sums": 4, "stories": 4, "<b>code</b> & more": 4}
DEPTH = 4
NASTY = "Say </script><script>alert(1)</script> & \"quotes\" 'n' \u2028 <!-- "
VOID = {"meta", "link", "br"}


def provenance() -> dict[str, Any]:
    return {
        "versions": {"jspec": "0.1.0", "jax": "0.10.2"},
        "commit": "abc1234",
        "command": "bench.py --config synthetic",
        "device": "synthetic device",
        "processor": "none",
        "cores": 2,
        "seed": 0,
        "dtype": "float32",
    }


def run(rng: random.Random, name: str, category: str, place: tuple[float, int, int]) -> dict:
    temperature, batch_size, repeat = place
    chance = (
        DRAFTERS.get(name, 0.0) - 0.15 * (temperature > 0) - 0.05 * list(CATEGORIES).index(category)
    )
    is_drafter = name in DRAFTERS
    shares = [chance ** (depth + 1) for depth in range(DEPTH)] if is_drafter else []
    tau = 1 + sum(shares)
    texts, new_tokens = CATEGORIES[category], CATEGORIES[category] * 97
    calls = round((new_tokens - texts) / tau)
    cost = 1 + is_drafter * (0.4 + 0.22 * batch_size) + 1.6 * name.startswith("transformers")
    decode_s = calls * 0.0023 * cost * rng.uniform(0.95, 1.08)
    each = {"new_tokens": 97, "decode_s": decode_s / texts, "target_calls": round(calls / texts)}
    return {
        "kind": "run",
        "batch_size": batch_size,
        "repeat": repeat,
        "category": category,
        "temperature": temperature,
        "contestant": name,
        "texts": texts,
        "seconds": decode_s + 0.02,
        "prefill_s": 0.02,
        "decode_s": decode_s,
        "new_tokens": new_tokens,
        "target_calls": calls,
        "tokens_per_call": (new_tokens - texts) / calls,
        "draft_tokens_proposed": calls * DEPTH if is_drafter else None,
        "draft_tokens_accepted": round(calls * sum(shares)) if is_drafter else None,
        "accepted_by_depth": [round(calls * share) for share in shares],
        "ttft_s": 0.005,
        "tpot_s": decode_s / new_tokens,
        "per_prompt": [{"id": f"{category} {i}", **each} for i in range(texts)],
        "same": {"texts": texts, "identical": texts, "near_ties": 0, "unexcused": 0},
        "digest": "same",
        "load": rng.uniform(1, 3),
        "provenance": provenance(),
    }


def cost(rng: random.Random, batch_size: int, repeat: int, context: int) -> dict[str, Any]:
    plain = 0.0023 * (1 + context / 4000)
    forwards = {str(n): 0.9 * plain * (1 + 0.11 * (n - 1) * batch_size**0.5) for n in range(1, 9)}
    contestants = {}
    for i, name in enumerate(DRAFTERS):
        nodes, draft_s = (5, 4, 7)[i], plain * (0.01, 0.16, 0.28)[i]
        timed = {
            "round_s": forwards[str(nodes)] + draft_s + plain * rng.uniform(0.25, 0.35),
            "draft_s": draft_s,
            "n_nodes": nodes,
            "tokens_per_round": 2.0,
        }
        contestants[name] = {"temperature": {"0.0": timed, "1.0": timed}}
    return {
        "kind": "cost",
        "batch_size": batch_size,
        "repeat": repeat,
        "context": context,
        "plain_round_s": plain,
        "plain_round_s_by_temperature": {"0.0": plain, "1.0": plain},
        "forwards": forwards,
        "contestants": contestants,
        "provenance": provenance(),
    }


WORDS = [" the", " sum", " of", "\n", " 12", "  ", "\t", "", " ünder", " <i>", NASTY, "\n\n", " so"]


def picture(rng: random.Random, name: str, category: str, temperature: float) -> dict[str, Any]:
    tokens, rounds = [], []
    for number in range(14):
        n_accepted = rng.randint(0, DEPTH) if name in DRAFTERS else 0
        nodes = [{"token": 0, "text": " root", "parent": -1, "depth": 0, "is_accepted": True}]
        spine = 0
        for depth in range(1, DEPTH + 1 if name in DRAFTERS else 1):
            parent, kept = spine, depth <= n_accepted
            for sibling in range(2 if name.startswith("tree") else 1):
                if sibling == 0:
                    spine = len(nodes)
                node = {"token": depth, "text": rng.choice(WORDS), "parent": parent}
                nodes.append({**node, "depth": depth, "is_accepted": kept and sibling == 0})
        rounds.append(
            {"round": number, "start": len(tokens), "n_accepted": n_accepted, "nodes": nodes}
        )
        for depth in [*range(1, n_accepted + 1), 0]:
            tokens.append(
                {
                    "id": len(tokens),
                    "text": rng.choice(WORDS),
                    "depth": depth,
                    "rank": 1,
                    "logprob": -rng.random(),
                    "gap": rng.random() * 4,
                    "round": number,
                }
            )
    return {
        "kind": "picture",
        "contestant": name,
        "category": category,
        "prompt_id": "0",
        "temperature": temperature,
        "prompt_text": NASTY,
        "tokens": tokens,
        "rounds": rounds,
        "provenance": provenance(),
    }


def synthetic(
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8), temperatures: tuple[float, ...] = (0.0, 1.0)
) -> list[dict[str, Any]]:
    """Records of every kind from a fixed seed; no machine has measured them."""
    rng = random.Random(0)
    repeats, contexts = 3, (128, 512, 2048)
    settings = {
        "kind": "settings",
        "config": "synthetic",
        "target": "synthetic target",
        "target_digest": "0" * 12,
        "drafters": {
            name: {"drafter": name, "drafter_path": None, "drafter_options": {"width": 4}}
            for name in DRAFTERS
        },
        "categories": CATEGORIES,
        "temperatures": temperatures,
        "batch_sizes": batch_sizes,
        "contexts": contexts,
        "repeats": repeats,
        "max_new_tokens": 97,
        "peers": ["transformers plain"],
        "provenance": provenance(),
    }
    records = [settings]
    for batch_size in batch_sizes:
        for repeat in range(repeats):
            for temperature in temperatures:
                names = ["plain", *DRAFTERS, *["transformers plain"] * (batch_size == 1)]
                place = temperature, batch_size, repeat
                records += [run(rng, n, c, place) for n in names for c in CATEGORIES]
            records += [cost(rng, batch_size, repeat, context) for context in contexts]
    for name, stages in zip(DRAFTERS, ((0.1, 3, 0.4), (0.6, 3, 0.4), (0.9, 4, 0.6)), strict=True):
        for temperature in temperatures:
            split = {"contestant": name, "temperature": temperature, "batch_size": 1}
            times = dict(zip(("propose_s", "verify_s", "commit_s"), stages, strict=True))
            records.append({"kind": "split", **split, **times, "rounds": 1000})
    for name in ("plain", *DRAFTERS):
        records += [picture(rng, name, category, 0.0) for category in list(CATEGORIES)[:2]]
    return records


class Reader(HTMLParser):
    """Checks that elements close in order; keeps attributes, ids, and the text of scripts."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)


def read(written: str) -> Reader:
    reader = Reader()
    reader.feed(written)
    reader.close()
    assert not reader.open
    return reader


def section_names(reader: Reader) -> set[str]:
    return {str(attributes["id"]) for tag, attributes in reader.tags if tag == "section"}


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return synthetic()


@pytest.fixture(scope="module")
def written(records) -> str:
    return page(records)


@pytest.fixture(scope="module")
def few() -> list[dict[str, Any]]:
    """One temperature and batch size, for pages that are written anew."""
    return synthetic((1,), (0.0,))


def without(records, *kinds: str):
    return [record for record in records if record["kind"] not in kinds]


def test_the_page_is_one_whole_document(written):
    reader = read(written)
    assert [tag for tag, _ in reader.tags][:2] == ["html", "head"]
    ids = [a["id"] for _, a in reader.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_page_asks_for_nothing_outside_itself(written):
    for tag, attributes in read(written).tags:
        for name in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(name) in (None, "data:,"), (tag, attributes)
        assert (attributes.get("xlink:href") or "#").startswith("#")
    assert not re.search(r"https?://|@import|url\([^#]|fetch\(|XMLHttpRequest", written)


def test_what_parts_of_a_drawing_refer_to_is_in_the_same_drawing(written):
    for drawing in re.findall(r"<svg.*?</svg>", written, re.DOTALL):
        named = set(re.findall(r' id="([^"]+)"', drawing))
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', drawing)) <= named


def test_the_same_records_give_the_same_page(few):
    assert page(few) == page(few)


def test_texts_cannot_become_markup_or_end_a_script(written):
    reader = read(written)
    assert len([tag for tag, _ in reader.tags if tag == "script"]) == 1
    assert not [tag for tag, _ in reader.tags if tag in ("i", "code")]
    assert "alert(1)</script>" not in written and "<b>code" not in written
    assert str(escape(NASTY)) in written


def test_every_measured_thing_has_its_section(written):
    sections = section_names(read(written))
    assert sections == {"headline", "terms", "plots", "tokens", "raw", "provenance"}


@pytest.mark.parametrize(
    ("kind", "gone"),
    [
        ("picture", ["Token by token"]),
        ("cost", ["Cost of a round by length", "Predicted and measured speedup"]),
        ("split", ["Where a round's time goes"]),
    ],
)
def test_what_was_not_measured_is_left_out(few, written, kind, gone):
    shorter = page(without(few, kind))
    read(shorter)
    for words in gone:
        assert escape(words) in written and escape(words) not in shorter


def test_one_batch_size_has_no_sweep(written, few):
    assert "Speedup by batch size" in written
    assert "Speedup by batch size" not in page(few)


@pytest.mark.parametrize("keep", [(), ("settings",), ("settings", "picture"), ("cost",), ("run",)])
def test_a_page_of_few_kinds_is_short_and_whole(few, keep):
    reader = read(page([record for record in few if record["kind"] in keep]))
    assert ("headline" in section_names(reader)) == ("run" in keep)


def test_a_run_of_plain_decoding_alone_has_a_page(few):
    alone = [r for r in few if r.get("contestant", "plain") == "plain"]
    reader = read(page(without(alone, "cost")))
    assert {"terms", "raw"} <= section_names(reader)


def test_one_repeat_of_one_category_has_no_interval(few):
    once = [r for r in few if r.get("repeat", 0) == 0 and r.get("category", "sums") == "sums"]
    assert "one measurement, no interval" in page(once)


def test_losses_are_told_before_everything_else(written):
    words = written[: written.index("Contestants and their terms")]
    assert "do not speculate" in words
    assert words.index("Where not to speculate") > words.index("tokens per call")


def test_unexcused_differences_are_a_warning(few, written):
    worse = [
        {**r, "same": {**r["same"], "identical": 3, "unexcused": 1}}
        if r["kind"] == "run" and r["contestant"] == "draft 3"
        else r
        for r in few
    ]
    assert "this run is not lossless" in page(worse)
    assert "this run is not lossless" not in written


def test_what_was_skipped_is_told_with_its_reason(few):
    skipped = {"kind": "skipped", "reason": "context 9999 is longer than the target's"}
    assert "Context 9999 is longer than the target&#39;s." in page([*few, skipped])


def test_each_contestant_has_one_colour_and_sign_of_its_own(written):
    looks = looks_of(["plain", *DRAFTERS, "transformers plain"])
    assert len({look.colour for look in looks.values()}) == len(looks)
    pattern = r'style="--colour:([^"]+)" data-sign="([^"]+)">([^<]+)<'
    told = {(name, colour, sign) for colour, sign, name in re.findall(pattern, written)}
    assert told == {(name, look.colour, look.sign) for name, look in looks.items()}
    plots = written[written.index("<figure") : written.rindex("</figure>")]
    assert all(look.colour in plots for name, look in looks.items() if name in DRAFTERS)


def test_drawings_have_a_name_their_origin_and_the_colours_of_the_page(written):
    drawings = [a for tag, a in read(written).tags if tag == "svg"]
    assert drawings
    for attributes in drawings:
        assert attributes["role"] == "img" and attributes["viewbox"]
        assert "width" not in attributes and "height" not in attributes
        caption = attributes["aria-label"] or ""
        assert caption.endswith("synthetic target, synthetic device, commit abc1234.")
        assert "batch 1;" in caption or "all batch sizes;" in caption.lower()
    assert "currentColor" in written and INK not in written


def test_axes_have_units(written):
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", written)
    for unit in ("ms a round", "share kept", "texts decoded together", "tokens before the round"):
        assert unit in texts
    assert "times plain decoding, whole calls" in texts and "<b>code</b> & more" in map(
        lambda text: Markup(text).unescape(), texts
    )


def test_every_table_scrolls_by_itself_after_a_hint(written):
    assert written.count("<table>") == written.count('class="scroll"') == 4
    assert len(re.findall(r'class="hint" hidden>[^<]+</p>\s*<div class="scroll"', written)) == 4


def test_seed_zero_and_all_else_that_is_known_is_in_the_provenance(written):
    facts = written[written.index('id="provenance"') :]
    assert "<dt>seed</dt><dd>0</dd>" in facts and "jspec 0.1.0, jax 0.10.2" in facts
    assert "<dt>drafter tree 3x2</dt><dd>tree 3x2 width=4</dd>" in facts


def test_no_path_of_a_machine_is_in_the_page(written):
    assert "/home/" not in written and "/work/" not in written
