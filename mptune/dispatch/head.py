"""Whether the head of the Ray cluster is there, and still the same one.

Ray ends a process that cannot reach the head for a minute, and aborts one that asks a head which
was restarted without its memory. So nothing may be asked of Ray while the head is away.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from mptune.errors import DispatchError

AWAY_S = 40.0
"""How long a head may be away: Ray gives it 60 s, and closing takes some of them."""

LOOK_EVERY_S = 0.5

NOTICE_S = 5.0
"""For the watch to see what somebody else has run into: that the head has gone."""

ANOTHER = "WrongClusterID"
"""In Ray's answer to a question that was meant for the head before this one."""


class Head:
    """Watches from a thread of its own over one open connection; `identity` asks who is there.

    A head that keeps its memory in Redis may come back as the same one, and the search goes on.
    """

    def __init__(self, address: str, identity: Callable[[], str]) -> None:
        host, _, port = address.rpartition(":")
        self._address, self._where = address, (host, int(port))
        self._identity, self._known = identity, identity()
        self._connection = socket.create_connection(self._where)
        self._away_since: float | None = None
        self._absences = self._excused = 0
        self._restarted = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def is_there(self) -> bool:
        """Whether Ray can be asked for something now.

        Raises:
            DispatchError: the head is lost for good.
        """
        if lost := self.lost():
            raise DispatchError(lost)
        return not self.is_away()

    def is_away(self) -> bool:
        """Whether Ray would not answer, now or ever."""
        return self._restarted or self._away_since is not None

    def lost(self) -> str | None:
        """Why the head is lost for good, if it is."""
        since = self._away_since
        if self._restarted:
            what = f"the head of the Ray cluster at {self._address} was restarted"
        elif since is not None and time.monotonic() - since > AWAY_S:
            what = f"the head of the Ray cluster at {self._address} is away for {AWAY_S:.0f} s"
        else:
            return None
        return f"{what}; nothing that finished is lost: the same command goes on"

    def excuses(self, error: Exception) -> bool:
        """Whether Ray failed because the head was away, as it may be between two looks at it.

        Raises:
            DispatchError: the head is lost for good.
        """
        self._restarted |= ANOTHER in str(error)
        give_up = time.monotonic() + NOTICE_S
        while self.is_there():
            if self._absences > self._excused:
                self._excused = self._absences
                return True
            if time.monotonic() > give_up:
                return False
            self._closed.wait(LOOK_EVERY_S / 10)
        self._excused = self._absences
        return True

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _watch(self) -> None:
        while not self._closed.is_set():
            self._wait_for_the_end_of_the_connection()
            if self._closed.is_set():
                return
            self._away_since = time.monotonic()
            self._absences += 1
            self._connect_again()

    def _wait_for_the_end_of_the_connection(self) -> None:
        with suppress(OSError):
            while self._connection.recv(4096):
                pass

    def _connect_again(self) -> None:
        while not self._closed.is_set():
            try:
                self._connection = socket.create_connection(self._where)
                self._restarted = self._identity() != self._known
            except Exception:
                self._closed.wait(LOOK_EVERY_S)
            else:
                self._away_since = None
                return
