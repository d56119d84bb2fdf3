"""Compares predictions with labels: metrics with intervals, and charts."""
