"""Finds the images of a source and writes them as shards."""
