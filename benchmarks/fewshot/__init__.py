"""With few labels: the methods of the project and those it is built from, on the same features."""
