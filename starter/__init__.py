"""Phantom images with known truth, and the small pretrained models that are the default."""
