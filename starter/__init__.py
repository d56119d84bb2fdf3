"""The embedded default: phantom images with known truth, and small models that run anywhere."""
