"""The language model: base models, item tokens and their rows, adapters, the dense head."""
