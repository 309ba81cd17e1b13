"""From a model and a catalogue to answers: the Recommender, its bundle, its items, and the Hub."""
