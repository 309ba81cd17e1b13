"""Codes <-> tokens of a Hugging Face tokenizer, the rows of those tokens in a model, the trie over the catalogue."""

from llmrec.vocab.embeddings import add_item_rows, embedding_names
from llmrec.vocab.tokens import ItemVocabulary
from llmrec.vocab.trie import ItemTrie

__all__ = ["ItemTrie", "ItemVocabulary", "add_item_rows", "embedding_names"]
