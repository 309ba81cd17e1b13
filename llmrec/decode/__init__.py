"""From a prompt to real items: the trie as a constraint on `generate`, and the ranker built on it."""

from llmrec.decode.beam import BeamSearch, Ranking
from llmrec.decode.config import DecodeConfig
from llmrec.decode.constraint import TrieConstraint

__all__ = ["BeamSearch", "DecodeConfig", "Ranking", "TrieConstraint"]
