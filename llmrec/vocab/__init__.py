"""Codes <-> tokens of a Hugging Face tokenizer, the rows of those tokens in a model, the trie over the catalogue."""
