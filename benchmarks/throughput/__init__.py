"""Images a second of ``score``, of its models alone, and of other programs that do the same."""
