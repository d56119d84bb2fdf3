"""Removes credentials from texts before they are shown or kept."""

import os
import re

# ``user:password@`` of a URI. A password may hold an @ itself: the last one before the path counts.
_IN_URI = re.compile(r"://[^/\s\"'<>]*@")
# Variables whose values are secrets. A shorter value is no secret but a word that any text may hold.
_SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|ACCESS_KEY|API_KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
_USER_OF_URI = re.compile(r"[a-zA-Z][\w.+-]*://(?P<user>[^/].*@)")


def without_credentials(text: str) -> str:
    """A text without the ``user:password@`` of the URIs in it, and without the secrets of the environment."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
        elif "@" in value and (user := _USER_OF_URI.match(value)):  # also with a / in the password
            text = text.replace(user["user"], "")
    return _IN_URI.sub("://", text)
