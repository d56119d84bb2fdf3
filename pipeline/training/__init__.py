"""Prompt tuning on features: the folds, the loop that each worker runs, and its checkpoints."""
