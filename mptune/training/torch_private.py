"""The private part of torch that is replaced here: the lock under which it compiles C++ code.

torch marks a build in progress with a file. A killed process leaves the file behind, and every
process after it waits for ever. `CompileLock` also holds a kernel lock on a file beside it, which
ends with its process.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

MARK = b"held with flock\n"
"""Content of a lock file of ours; torch's own are empty."""

ABANDONED_S = 600.0
"""Age after which a lock file of torch's own counts as left behind; a build takes 25 to 90 s."""

POLL_S = 0.1


def install_compile_lock() -> None:
    """Make torch use `CompileLock` for every C++ operation that this process compiles."""
    cpp_extension.FileBaton = CompileLock  # type: ignore[attr-defined]


class CompileLock(FileBaton):
    """torch's FileBaton, but a lock whose owner has died is taken over.

    Processes that use torch's own class, in other programs, are waited for.
    """

    def __init__(self, lock_file_path: str, *more: Any, **options: Any) -> None:
        super().__init__(lock_file_path, *more, **options)
        self._path = Path(lock_file_path)
        beside = self._path.with_name(f"{self._path.name}.held")
        self._held = FileLock(beside, 0, thread_local=False, fallback_to_soft=False)
        self.fd: Any  # torch annotates it as None

    def try_acquire(self) -> bool:
        """Return True if this process must compile, False if another one is compiling.

        Raises:
            OSError: the folder cannot be written to.
        """
        try:
            self._held.acquire()
        except Timeout:
            return False
        except OSError:  # the file system has no locks
            return bool(super().try_acquire())
        # No other holder of this lock compiles now. If there is a file, a killed process has left
        # it, or another program compiles with torch's own lock.
        while not super().try_acquire():
            with suppress(FileNotFoundError):
                age_s = time.time() - self._path.stat().st_mtime
                if self._path.read_bytes() == MARK or age_s > ABANDONED_S:
                    self._path.unlink()
                    continue
            time.sleep(POLL_S)
        self._path.write_bytes(MARK)
        return True

    def wait(self) -> None:
        """Wait until no process is compiling."""
        while self._path.exists() and not self.try_acquire():
            time.sleep(POLL_S)
        self.release()

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        if self.fd is not None:
            os.close(self.fd)
            self._path.unlink(missing_ok=True)
            self.fd = None
        self._held.release()
