"""The HTTP server of a Recommender."""
