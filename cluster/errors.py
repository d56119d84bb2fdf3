"""Errors of this room; the message is one line and says what to do."""


class ClusterError(Exception):
    """There is no cluster where one was asked for."""
