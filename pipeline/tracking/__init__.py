"""MLflow runs, and the tracking store that keeps them."""
