"""Trained models, the registry that keeps them, and the files of the frozen models they build on."""
