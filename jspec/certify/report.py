"""The certificate on a terminal, one page, failures first."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jspec.certify.certificate import TIERS, Certificate, outcome_of, tokens_of

_NARROWEST = 60


def print_certificate(certificate: Certificate, console: Console) -> None:
    """Verdict, table, facts."""
    colour = "green" if certificate.has_passed else "red" if certificate.failures else "yellow"
    title = f"Losslessness certificate: {certificate.title}"
    console.print(f"[bold]{escape(title)}[/bold]")
    console.print(f"[bold {colour}]{escape(certificate.verdict)}[/bold {colour}]")
    console.print(escape(certificate.totals))
    console.print(table_of(certificate, is_narrow=console.width < _NARROWEST))
    for name, value in certificate.facts.items():
        if value:
            console.print(f"[dim]{escape(name)}: {escape(value)}[/dim]")


def table_of(certificate: Certificate, *, is_narrow: bool = False) -> Table:
    """A row for every check that is done."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("check", min_width=16)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    if not is_narrow:
        table.add_column("what was found", ratio=1)
    tier = None
    for record in certificate.in_order:
        section = "Failures" if not record.has_passed else TIERS[record.tier]
        if section != tier:
            table.add_row("", f"[bold]{escape(section)}[/bold]")
            tier = section
        mark = "[green]pass[/green]" if record.has_passed else "[red]FAIL[/red]"
        cells = [mark, escape(record.name), tokens_of(record), f"{record.seconds:.1f}"]
        table.add_row(*cells, *([] if is_narrow else [escape(outcome_of(record))]))
    return table
