"""Losses, steps, data and checkpoints for drafters and small targets."""
