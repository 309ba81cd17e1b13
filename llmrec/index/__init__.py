"""What a catalogue looks like to a decoder: the trie of semantic IDs, and the dense index of item vectors."""
