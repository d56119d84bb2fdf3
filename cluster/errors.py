"""The error of this package; its message is one line and says what to do."""


class ClusterError(Exception):
    """There is no cluster where one was asked for, or this machine cannot start one."""
