"""TCP ports."""

from __future__ import annotations

import socket


def free_port() -> int:
    """One that nothing listens on now, at any address of this machine."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
    return port
