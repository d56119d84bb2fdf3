"""Predictions against their labels: metrics with intervals, and charts."""
