"""Label files of every dialect, and how their rows find their images."""
