"""Side-by-side measurements, each a runnable module that prints one table."""
