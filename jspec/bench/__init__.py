"""`python -m jspec.bench`: what speculation yields here, and the terms that explain it."""
