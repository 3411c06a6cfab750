"""HTML pages that need nothing besides themselves: the page of a benchmark, that of a certificate.

Their templates extend `page.html.j2`, which brings the style (`page.css`) and the provenance.
"""

from __future__ import annotations

from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill a template; markup in the values is escaped, and a value that is missing is an error.

    Args:
      template: its path, such as jspec/bench/report/report.html.j2.
      **values: what the template calls by these names.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PrefixLoader({"jspec": jinja2.PackageLoader("jspec", ".")}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)
