"""From a model to a table of scores. The door: `python -m r1ov.evaluate`, or `evaluate.evaluate(config)`."""
