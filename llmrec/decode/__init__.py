"""From a prompt to real items: beam search that the trie constrains, and rankings built on it."""
