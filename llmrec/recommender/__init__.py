"""The Recommender answers requests with a model and a catalogue; also its bundle, its items and the Hub."""
