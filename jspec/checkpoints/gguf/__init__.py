"""GGUF files: one file that holds a model's metadata, tokenizer and weights."""
