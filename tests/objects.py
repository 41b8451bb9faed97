"""An object store as S3 is one, that several processes see.

Objects appear whole under a key; there are no folders, nothing can be renamed or appended to, and
listings are remembered until they are asked to be forgotten. `objects://BUCKET/KEY` keeps the
object in the folder that `bucket` made the name from.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import fsspec
from fsspec.spec import AbstractFileSystem


def bucket(folder: Path) -> str:
    """The URL of a bucket whose objects are files of this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return f"objects://{quote(str(folder), safe='')}"


class ObjectStore(AbstractFileSystem):
    """Only what object stores have in common."""

    protocol = "objects"

    def _file(self, path: str) -> Path:
        name, _, key = self._strip_protocol(path).partition("/")
        return Path(unquote(name)) / quote(key, safe="")

    def _keys(self, name: str) -> list[str]:
        folder = Path(unquote(name))
        if name not in self.dircache:
            self.dircache[name] = [unquote(f.name) for f in folder.iterdir()]
        return list(self.dircache[name])

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()

    def pipe_file(self, path: str, value: bytes, **more: Any) -> None:
        file = self._file(path)
        aside = file.with_name(f"{file.name}.{os.getpid()}.aside")
        aside.write_bytes(value)
        aside.replace(file)

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def cat_file(self, path: str, **more: Any) -> bytes:
        return self._file(path).read_bytes()

    def get_file(self, rpath: str, lpath: str, **more: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def info(self, path: str, **more: Any) -> dict[str, Any]:
        path, file = self._strip_protocol(path), self._file(path)
        if file.is_file():
            return {"name": path, "size": file.stat().st_size, "type": "file"}
        if self.ls(path, detail=False):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **more: Any) -> list[Any]:
        name, _, key = self._strip_protocol(path).partition("/")
        prefix = f"{key}/" if key else ""
        inside = [k for k in self._keys(name) if k.startswith(prefix)]
        if not inside:
            raise FileNotFoundError(path)
        found = {f"{name}/{prefix}{k[len(prefix) :].split('/')[0]}" for k in inside}
        return [self.info(p) for p in sorted(found)] if detail else sorted(found)

    def rm_file(self, path: str) -> None:
        self._file(path).unlink()

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        name, _, key = self._strip_protocol(path).partition("/")
        self.invalidate_cache()
        gone = [k for k in self._keys(name) if k == key or k.startswith(f"{key}/")]
        if not gone:
            raise FileNotFoundError(path)
        for each in gone:
            self.rm_file(f"{name}/{each}")


fsspec.register_implementation("objects", ObjectStore, clobber=True)
