"""Prompt tuning on features: folds, the loop of each worker, and its checkpoint."""
