"""What answers for many: the HTTP server of a Recommender, and batch jobs."""
