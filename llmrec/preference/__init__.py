"""Preference alignment: what the user gets is a list, and the model's own lists show what is wrong with them."""
