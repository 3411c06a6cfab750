"""Falcon: a head on the target's features that drafts a tree, a block of tokens a pass."""
