"""The report of a measurement: one HTML page that needs nothing besides itself.

In reading order: `page` gathers what the page shows, `charts` plots, `looks` gives each contestant
its colour and marker, `picture` prepares texts token by token, and `render` fills the templates
(`*.html.j2`), from which the page of a certificate is made too.
"""
