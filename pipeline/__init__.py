"""What runs: the commands in rooms, and the configuration, records, storage and tracking that they share."""

from contextlib import suppress

from medfocus.cluster.environment import prepare_environment
from medfocus.cluster.errors import ClusterError

# Before any module of this package imports MLflow or Ray. A command calls it again and reports what it raises.
with suppress(ClusterError):
    prepare_environment()
