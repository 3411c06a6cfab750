"""The certificate as one HTML file that needs nothing else: light and dark, narrow and wide."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from jspec.certify.certificate import TIERS, Certificate, by_tier, outcome_of, tokens_of
from jspec.certify.records import Record

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #57606a;
  --line: #d0d7de; --good: #116329; --bad: #b3261e; --wait: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9198a1;
  --line: #30363d; --good: #56d364; --bad: #ff8a80; --wait: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 16px 48px; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 28px 0 6px; }
.verdict { font-size: 18px; font-weight: 600; margin: 4px 0; }
.good { color: var(--good); } .bad { color: var(--bad); } .wait { color: var(--wait); }
p { margin: 4px 0; } .soft, th, dt { color: var(--soft); }
table { width: 100%; border-collapse: collapse; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: 5px 10px 5px 0;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 400; border-top: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.check { width: 26%; } .tokens { width: 10%; } .s { width: 8%; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  thead { display: none; } table, tbody, tr, td { display: block; width: 100%; }
  tr { border-top: 1px solid var(--line); padding: 8px 0; } td { border: 0; padding: 0; }
  td.n { display: inline; color: var(--soft); width: auto; }
  td.n::after { content: attr(data-unit); }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 6px; }
}
"""


def page_of(certificate: Certificate) -> str:
    """The whole document."""
    kind = "good" if certificate.has_passed else "bad" if certificate.failures else "wait"
    title = f"Losslessness certificate: {escape(certificate.title)}"
    sections = [_section("Failures", certificate.failures)] if certificate.failures else []
    for tier, records in by_tier(certificate.records).items():
        sections.append(_section(TIERS[tier], records))
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in certificate.facts.items()
        if value
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{title}</h1>\n<p class="verdict {kind}">{escape(certificate.verdict)}</p>\n'
        f"<p>{escape(certificate.totals)}</p>\n" + "\n".join(sections) + "\n<h2>Made of</h2>\n"
        f"<dl>{facts}</dl>\n</body>\n</html>\n"
    )


def _section(title: str, records: Sequence[Record]) -> str:
    head = (
        '<thead><tr><th class="check">check</th><th class="n tokens">tokens</th>'
        '<th class="n s">s</th><th>what was checked and found</th></tr></thead>'
    )
    rows = "\n".join(_row(record) for record in records)
    return f"<h2>{escape(title)}</h2>\n<table>{head}<tbody>\n{rows}\n</tbody></table>"


def _row(record: Record) -> str:
    kind, said = ("good", "pass") if record.has_passed else ("bad", "FAIL")
    found = outcome_of(record)
    detail = f'<div class="soft">{escape(record.covers)}</div>' + (
        f"<div>{escape(found)}</div>" if found else ""
    )
    return (
        f'<tr><td><b class="{kind}">{said}</b> {escape(record.name)}</td>'
        f'<td class="n" data-unit=" tokens, ">{tokens_of(record)}</td>'
        f'<td class="n" data-unit=" s">{record.seconds:.1f}</td><td>{detail}</td></tr>'
    )
