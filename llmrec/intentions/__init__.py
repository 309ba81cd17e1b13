"""Where the words of customers come from: intentions that items meet, and preferences of users."""

from llmrec.intentions.config import IntentionsConfig
from llmrec.intentions.gather import gather
from llmrec.intentions.intentions import Intentions

__all__ = ["Intentions", "IntentionsConfig", "gather"]
