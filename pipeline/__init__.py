"""What runs: one module a command, and the configuration, records, storage and tracking they share."""

import os

# Read when mlflow is imported: runs report to their own store and to nobody else.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
