"""Runs in MLflow, and the store that keeps them."""
