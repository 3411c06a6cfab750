"""EasySpec: a smaller model of the same series drafts with its layers in groups."""
