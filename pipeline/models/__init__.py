"""What a trained model is, where weights and models are found, and how sure a model may be."""
