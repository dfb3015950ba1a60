"""Images and questions to training data: cross-modal formalization.

The door is `python -m r1ov.formalize`; `stages.formalize` is what it does to one row.
"""
