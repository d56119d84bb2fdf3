"""The stream over shards: shards are read, pass the stages row by row, and are committed exactly once."""
