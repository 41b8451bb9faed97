"""Who compiles an operation of DeepSpeed's, while the other processes of the machine wait.

torch marks a build under way with a file, which a killed process leaves behind: everybody after it
waits for ever. Here the file is held by a lock of the kernel's, which dies with its process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

MARK = b"held with flock\n"
"""In the file of whoever holds a lock; one of torch's own is empty."""

FORGOTTEN_S = 600.0
"""An operation takes 25 to 90 s to compile: a stranger's file this old is left behind."""

LOOK_EVERY_S = 0.1

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""From file systems that know none."""


def install() -> None:
    """Let torch use it for every operation that this process loads."""
    cpp_extension.FileBaton = Baton  # type: ignore[attr-defined]


class Baton(FileBaton):
    """torch's, but nobody waits for the dead. Strangers with torch's own are waited for."""

    def __init__(self, lock_file_path: str, *more: Any, **options: Any) -> None:
        super().__init__(lock_file_path, *more, **options)
        self._path = Path(lock_file_path)
        self.fd: Any  # torch's class says None

    def try_acquire(self) -> bool:
        """Whether this process is to compile; false is another one does, and `wait` is next.

        Raises:
            OSError: the folder cannot be written to.
        """
        try:
            while (acquired := self._attempt()) is None:
                time.sleep(LOOK_EVERY_S)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return bool(super().try_acquire())
        return acquired

    def wait(self) -> None:
        """Until nobody compiles any more."""
        while self._path.exists() and self.try_acquire() is False:
            time.sleep(LOOK_EVERY_S)
        self.release()

    def release(self) -> None:
        """Gone before it is free: who gets the lock of a file that is gone looks again."""
        if self.fd is not None:
            self._path.unlink(missing_ok=True)
            os.close(self.fd)
            self.fd = None

    def _attempt(self) -> bool | None:
        """None is to be tried again: somebody has come or gone in between, or is a stranger."""
        created, file = self._open()
        if file is None:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if created else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(file)
            return False
        if not self._is(file) or not (created or self._is_forgotten(file)):
            os.close(file)
            return None
        os.pwrite(file, MARK, 0)
        self.fd = file
        return True

    def _open(self) -> tuple[bool, int | None]:
        """Whether it was created, and the open file; None if it has gone meanwhile."""
        try:
            return True, os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            pass
        try:
            return False, os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            return False, None

    def _is(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False

    def _is_forgotten(self, file: int) -> bool:
        """Whether its maker is dead: one of ours without its lock, or a stranger long ago."""
        age_s = time.time() - os.fstat(file).st_mtime
        return os.pread(file, len(MARK), 0) == MARK or age_s > FORGOTTEN_S
