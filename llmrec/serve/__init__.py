"""The Recommender facade and the bundle it is saved as."""
