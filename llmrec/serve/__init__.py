"""What listens on a port: a Recommender over HTTP."""
