"""Classification with few labels: the project's methods and those they are built from, on the same features."""
