"""From a prompt to real items: the trie as a constraint on `generate`, and the ranker built on it."""
