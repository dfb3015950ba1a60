"""A model to a table of scores."""
