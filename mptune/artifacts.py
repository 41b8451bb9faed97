"""Stores of checkpoints and kept weights: a folder that all ranks share, or any fsspec URL.

An object store cannot rename, but each object is written atomically. So an artifact of several
files is valid once its last file exists, which names the others.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from mptune.errors import InputError, one_line
from mptune.paths import write_text

HUB_TIMEOUT_S = 5.0

SECRET_QUERY = r"[?&][^=&\s]*(?:passw|sig\b|signature|token|secret|credential)[^=&\s]*="
"""Of a signed URL, or one with a password."""


def without_secret(url: str) -> str:
    """The URL, if it has no secret.

    Raises:
        ValueError: it has one.
    """
    if "://" in url and re.search(f"(?i)://[^/@]*:[^/@]+@|{SECRET_QUERY}", url):
        raise ValueError(
            "has a password or a signature, which the run directory would keep: give credentials "
            "in the environment, as the file system of the URL reads them, or download the file"
        )
    return url


def check_url(url: str) -> str:
    """The URL, if its kind of store can be opened here.

    Raises:
        ValueError: fsspec has no such store, its package is missing, or the URL has a secret.
    """
    import fsspec

    without_secret(url)

    kind = fsspec.utils.get_protocol(url)
    try:
        fsspec.get_filesystem_class(kind)
    except (ValueError, ImportError) as error:
        raise ValueError(f"cannot be opened: {error}") from None
    return url


def await_hub(name: str, file: str, revision: str | None = None) -> None:
    """Raise at once if neither the cache nor the hub has a file: its clients try for a minute.

    Raises:
        InputError: the file is not in the cache, and the Hugging Face hub does not answer.
    """
    from huggingface_hub import HfApi, get_session, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(name, file, revision=revision), str):
            get_session().head(HfApi().endpoint, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # of several libraries
        raise InputError(
            f"{name}: no such folder, and the Hugging Face hub does not answer: {one_line(error)}"
        ) from error


def sha256(path: Path) -> str:
    """The file's checksum in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store_at(place: Path | str) -> Store:
    """The store at a path or a URL."""
    return Remote(str(place)) if "://" in str(place) else Folder(Path(place))


@dataclass(frozen=True)
class Folder:
    """A tree of files in a folder that all ranks share; names are relative to it, with slashes.

    Nothing is copied.
    """

    root: Path
    shared = True
    """Whether `staged` and `fetched` are the same folder on all ranks."""

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """A local folder in which files are written before `keep`."""
        self.root.mkdir(parents=True, exist_ok=True)
        yield self.root

    def keep(self, folder: Path, names: Iterable[str]) -> None:
        """Copy files of the staged folder into the store, in this order: they are there."""

    @contextmanager
    def fetched(self, names: Iterable[str]) -> Iterator[Path]:
        """A local folder with those of these files that the store has."""
        yield self.root

    def take(self, folder: Path, name: str, last: str) -> None:
        """Move a local folder of files into the store, replacing the folder of this name.

        If this is not atomic, the file `last`, which readers need, is written last.
        """
        self.remove(name)
        folder.rename(self.root / name)

    def inside(self, name: str) -> Folder:
        """The store whose root is a folder of this one."""
        return Folder(self.root / name)

    def read(self, name: str) -> str | None:
        """A file's text; None if the file does not exist."""
        try:
            return (self.root / name).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def write(self, name: str, text: str) -> None:
        """Replace a file's text; readers get the old text or the new one, never a part."""
        write_text(self.root / name, text)

    def children(self) -> list[str]:
        """Names of the files and folders directly under the root."""
        return sorted(p.name for p in self.root.iterdir()) if self.root.exists() else []

    def remove(self, name: str = "") -> None:
        """Delete a file, a folder or the whole store, if it exists."""
        shutil.rmtree(self.root / name, ignore_errors=True)

    def __str__(self) -> str:
        return str(self.root)


@dataclass(frozen=True)
class Remote:
    """The same at any URL that fsspec can open: s3://, gs://, abfs://, file:// and more."""

    url: str
    shared = False

    @contextmanager
    def staged(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="mptune-") as folder:
            yield Path(folder)

    def keep(self, folder: Path, names: Iterable[str]) -> None:
        """Upload the files.

        Raises:
            OSError: a file in the store has another size afterwards.
        """
        for name in names:
            self._files.makedirs(name.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(folder / name), name)
            written, size = self._files.size(name), (folder / name).stat().st_size
            if written != size:
                raise OSError(f"{self.url}/{name} has {written} of {size} bytes")

    @contextmanager
    def fetched(self, names: Iterable[str]) -> Iterator[Path]:
        with self.staged() as folder:
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if self._files.exists(name):
                    self._files.get_file(name, str(folder / name))
            yield folder

    def take(self, folder: Path, name: str, last: str) -> None:
        self.remove(name)
        names = sorted(path.name for path in folder.iterdir())
        self.inside(name).keep(folder, sorted(names, key=lambda each: each == last))
        shutil.rmtree(folder)

    def inside(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}")

    def read(self, name: str) -> str | None:
        self._files.invalidate_cache()
        try:
            return str(self._files.cat_file(name).decode())
        except (FileNotFoundError, ValueError):
            return None

    def write(self, name: str, text: str) -> None:
        self._files.makedirs(name.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(name, text.encode())

    def children(self) -> list[str]:
        self._files.invalidate_cache()
        try:
            found = self._files.ls("", detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str = "") -> None:
        self._files.invalidate_cache()
        try:
            self._files.rm(name, recursive=True)
        except FileNotFoundError:
            return

    @cached_property
    def _files(self) -> Any:
        """The file system below the URL."""
        import fsspec
        from fsspec.implementations.dirfs import DirFileSystem

        files, root = fsspec.core.url_to_fs(self.url)
        return DirFileSystem(str(root).rstrip("/"), files)

    def __str__(self) -> str:
        return self.url


Store: TypeAlias = Folder | Remote
