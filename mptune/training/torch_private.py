"""The private part of torch that is replaced here: the lock under which it compiles C++ code.

torch marks a build in progress with a file. A killed process leaves the file behind, and every
process after it waits for ever. `CompileLock` also holds a kernel lock (flock) on that file, which
ends with its process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

MARK = b"held with flock\n"
"""Content of a lock file of ours; torch's own are empty."""

ABANDONED_S = 600.0
"""Age after which a lock file of torch's own counts as left behind; a build takes 25 to 90 s."""

POLL_S = 0.1

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems without locks."""


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
        self.fd: Any  # torch annotates it as None

    def try_acquire(self) -> bool:
        """Return True if this process must compile, False if another one is compiling.

        Raises:
            OSError: the folder cannot be written to.
        """
        while (acquired := self._attempt()) is None:
            time.sleep(POLL_S)
        return acquired

    def wait(self) -> None:
        """Wait until no process is compiling."""
        while self._path.exists() and not self.try_acquire():
            time.sleep(POLL_S)
        self.release()

    def release(self) -> None:
        """Give the lock back, if this process has it."""
        if self.fd is not None:
            # Removed before it is unlocked: a process that then locks the removed file tries again.
            self._path.unlink(missing_ok=True)
            os.close(self.fd)
            self.fd = None

    def _attempt(self) -> bool | None:
        """Like `try_acquire`; None if the file has changed meanwhile or is torch's own."""
        created = True
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            created = False
            try:
                file = os.open(self._path, os.O_RDWR)
            except FileNotFoundError:
                return None
        with ExitStack() as unless_acquired:
            unless_acquired.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if created else fcntl.LOCK_NB))
                current = os.path.samestat(os.fstat(file), self._path.stat())
            except BlockingIOError:
                return False
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                if not created:
                    return False
            else:
                age_s = time.time() - os.fstat(file).st_mtime
                abandoned = os.pread(file, len(MARK), 0) == MARK or age_s > ABANDONED_S
                if not current or not (created or abandoned):
                    return None
                os.pwrite(file, MARK, 0)
            unless_acquired.pop_all()
        self.fd = file
        return True
