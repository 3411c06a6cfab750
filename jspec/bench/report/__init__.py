"""The report of a measurement: one HTML page that needs nothing besides itself.

In reading order: `page` gathers what the page shows, `charts` plots, `looks` gives each contestant
its colour and marker, and `picture` prepares texts token by token. `report.html.j2` has the markup.
"""
