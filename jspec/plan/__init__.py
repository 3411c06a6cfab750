"""`python -m jspec.plan`: the tree to draft, from what a target accepts and what a round costs."""
