"""What a person reads: results, log lines, progress, and the cause of an error."""
