"""Which node type Ray's cluster launcher starts next: spot nodes while the cloud has some, others when it has none.

By itself Ray prefers the type that the requests fill best. That the cloud refused a type does not count, so that it
would ask for spot nodes for ever. Version 1 of its autoscaler takes another scorer by the environment variable
``RAY_AUTOSCALER_UTILIZATION_SCORER``, which ``ray_cluster.yaml`` sets to ``score_node_type``. Of types of equal rank
Ray takes the one whose name is last in the alphabet. Kubernetes does without: the groups of workers there have
priorities, and a pod that finds no place counts as refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Resources = Mapping[str, float]


def score_node_type(
    node_resources: Resources, requests: Sequence[Resources], node_type: str, *, node_availability_summary: Any
) -> tuple[bool, bool, float] | None:
    """The rank of a node type; Ray starts the one with the highest.

    A node without GPUs goes before one with GPUs where no request names a GPU, then a type that the cloud did not
    refuse at the last attempt, then the type that the requests fill best. Ray forgets a refusal after half an hour.

    Args:
        node_resources: amount of each resource that a node of the type has.
        requests: amounts that tasks and actors wait for.
        node_type: name of the type.
        node_availability_summary: what Ray noted of the last attempt to start each type.

    Returns:
        The rank, or None where no request fits on such a node.
    """
    left = dict(node_resources)
    fits = False
    for request in requests:
        if all(amount <= left.get(name, 0) for name, amount in request.items()):
            fits = True
            for name, amount in request.items():
                left[name] = left.get(name, 0) - amount
    if not fits:
        return None
    spares_gpus = not node_resources.get("GPU") or any(request.get("GPU") for request in requests)
    record = node_availability_summary.node_availabilities.get(node_type)
    shares = [1 - left[name] / amount for name, amount in node_resources.items() if amount > 0]
    return spares_gpus, record is None or bool(record.is_available), sum(shares) / len(shares)
