"""Training examples from prompt templates: sequential recommendation and alignment tasks, mixed in every epoch."""
