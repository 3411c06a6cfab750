"""`python -m jspec.infer`: flags and prompts in, text or JSON lines out."""
