"""Reads label files of every dialect, and finds the image that each row names."""
