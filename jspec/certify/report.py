"""Shows a certificate to people, failures first: on the terminal, and as one HTML file."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jspec.certify.certificate import Certificate
from jspec.console.page import render

_NARROWEST = 60


def print_certificate(certificate: Certificate, console: Console) -> None:
    """Print verdict, table and facts."""
    colour = "green" if certificate.has_passed else "red" if certificate.failures else "yellow"
    title = f"Losslessness certificate: {certificate.title}"
    console.print(f"[bold]{escape(title)}[/bold]")
    console.print(f"[bold {colour}]{escape(certificate.verdict)}[/bold {colour}]")
    console.print(escape(certificate.totals))
    console.print(_table(certificate, is_narrow=console.width < _NARROWEST))
    for name, value in certificate.facts.items():
        if value:
            console.print(f"[dim]{escape(name)}: {escape(value)}[/dim]")


def _table(certificate: Certificate, *, is_narrow: bool) -> Table:
    """Make a row for every check that is done."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("check", min_width=16)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    if not is_narrow:
        table.add_column("what was found", ratio=1)
    for section, records in certificate.sections.items():
        table.add_row("", f"[bold]{escape(section)}[/bold]")
        for record in records:
            mark = "[green]pass[/green]" if record.has_passed else "[red]FAIL[/red]"
            cells = [mark, escape(record.name), record.tokens, f"{record.seconds:.1f}"]
            table.add_row(*cells, *([] if is_narrow else [escape(record.outcome)]))
    return table


def page_of(certificate: Certificate) -> str:
    """Write the certificate as one file that needs nothing else: light and dark, any width."""
    kind = "good" if certificate.has_passed else "bad" if certificate.failures else "wait"
    return render("jspec/certify/certificate.html.j2", certificate=certificate, kind=kind)
