"""Ways to rank a catalogue's items with one model, the ones that no training has seen among them."""
