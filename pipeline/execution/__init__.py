"""The stream over shards: a row is read, passes the stages, and is committed exactly once."""
