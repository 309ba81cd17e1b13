"""Prompt templates -> training examples: sequential recommendation and alignment tasks, mixed per epoch."""
