"""Token authentication of Ray: which token this process shows, and whether a cluster admits it.

Ray reads the token from ``RAY_AUTH_TOKEN``, else from the file that ``RAY_AUTH_TOKEN_PATH`` names, else from
``~/.ray/auth_token``, and shows it only where ``RAY_AUTH_MODE`` is ``token``.
"""

import os

import grpc

from medfocus.cluster.environment import authentication_token

# Calls that Ray answers to everybody whom it admits: its control service (GCS), and its server of Ray Client (ray://).
_CONTROL, _CLIENT = "/ray.rpc.NodeInfoGcsService/CheckAlive", "/ray.rpc.RayletDriver/ClusterInfo"
_LONGEST_CALL = 5.0
MEND = (
    "take the token from whoever started it (ray get-auth-token prints it on the head), and name its file in"
    " RAY_AUTH_TOKEN_PATH, or keep it as ~/.ray/auth_token"
)


def fault() -> str:
    """What is wrong with the token of this process where a cluster has refused it, and the mend."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if authentication_token() is None:
        return f"the cluster asks for a token, and this process has none; {MEND}"
    if mode.lower() != "token":
        return f"the cluster asks for a token, and RAY_AUTH_MODE is {mode or 'not set'} here; set it to token"
    return f"the cluster asks for another token than that of this process; {MEND}"


def refusal(address: str) -> str | None:
    """Why a cluster does not admit this process, and the mend; None where it does, or cannot be asked.

    Ray itself tries for 20 seconds, and then says that it cannot connect.

    Args:
        address: ``HOST:PORT`` to which drivers connect.
    """
    answers = (_answer(address, call) for call in (_CONTROL, _CLIENT))
    return fault() if grpc.StatusCode.UNAUTHENTICATED in answers else None


def is_control_service(address: str) -> bool:
    """Whether Ray's control service listens at ``HOST:PORT``, where people may look for the job server."""
    return _answer(address, _CONTROL) in (grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED)


def _answer(address: str, name: str) -> grpc.StatusCode:
    """How a service at an address answers a call with the token that Ray would show."""
    shown = authentication_token() if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" else None
    metadata = [("authorization", f"Bearer {shown}")] if shown else []
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(name)
        try:
            call(b"", timeout=_LONGEST_CALL, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK
