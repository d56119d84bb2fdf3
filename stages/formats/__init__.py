"""One module an image format: from encoded bytes to a picture."""
