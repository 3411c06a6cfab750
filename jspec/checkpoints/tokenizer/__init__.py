"""Tokenizers: how a checkpoint's files split a text, and the chat template."""
