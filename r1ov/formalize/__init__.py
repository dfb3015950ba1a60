"""Pictures and questions to training data: cross-modal formalization."""
