"""The catalogue as the decoder reads it: the trie of semantic IDs, and the dense index of item vectors."""
