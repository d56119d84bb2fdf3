"""What runs: one module a command, and the configuration, records, storage and tracking they share."""
