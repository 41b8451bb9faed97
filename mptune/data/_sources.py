"""Sources of data: local files, folders and globs, files of packages, fsspec URLs, datasets.

An entry of a source is one of

    path, folder or glob                relative to the spec
    python-stdlib                       the running Python's standard library, without its tests
    package:NAME/path/or/glob           files of an installed package, read by path, not imported
    s3://bucket/shard-*.parquet         any fsspec URL; its file system may need a package
    hf:NAME or hf:NAME:SPLIT            a data set of the Hugging Face hub, or a local folder of one
"""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import BeforeValidator

from mptune.artifacts import sha256, without_secret
from mptune.errors import did_you_mean, message_of
from mptune.paths import cache_directory, write_text

STDLIB = "python-stdlib"
PACKAGE = "package:"
DATASET = "hf:"

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

_NOT_SOURCE = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
_DATASET_MARKS = ("dataset_dict.json", "state.json")


def _as_tuple(value: object) -> object:
    value = (value,) if isinstance(value, str) else value
    if isinstance(value, list | tuple) and value and all(isinstance(v, str) and v for v in value):
        return tuple(map(without_secret, value))
    raise ValueError("is not a path, a glob or a list of them")


Source = Annotated[
    tuple[str, ...], BeforeValidator(_as_tuple, json_schema_input_type=str | list[str])
]


@dataclass(frozen=True, order=True)
class File:
    """One file of a source, or one data set of the Hugging Face hub.

    Attributes:
        name: path relative to its entry, so that it is the same on every machine.
        place: local path, URL, or `hf:` entry.
    """

    name: str
    place: str

    @property
    def suffix(self) -> str:
        """The name's ending without that of a compression: `.jsonl` of `a.jsonl.gz`."""
        if self.place.startswith(DATASET) or is_dataset(self.place):
            return DATASET
        path = Path(self.place.split("?")[0])
        return (Path(path.stem) if path.suffix in COMPRESSED else path).suffix.lower()

    @property
    def local(self) -> bool:
        return "://" not in self.place and not self.place.startswith(DATASET)

    def open(self) -> IO[bytes]:
        """The file's bytes, decompressed.

        Raises:
            OSError: it cannot be read.
        """
        import fsspec

        return fsspec.open(self.place, "rb", compression="infer").open()

    def size(self) -> int:
        """Bytes as stored, or 0 where the size is unknown."""
        if self.suffix == DATASET:
            return 0
        if self.local:
            return Path(self.place).stat().st_size
        system, path = _file_system(self.place)
        return int(system.size(path) or 0)

    def digest(self) -> str:
        """Hash of the content; of a remote file, hash of its ETag, or of its time and size."""
        if self.suffix == DATASET:
            # The fingerprint that `datasets` keeps of a data set's content and history.
            return str(open_dataset(self.place)._fingerprint)
        if self.local:
            return _local_digest(Path(self.place))
        system, path = _file_system(self.place)
        return hashlib.sha256(str(system.ukey(path)).encode()).hexdigest()


def absolute(source: Sequence[str], base: Path) -> tuple[str, ...]:
    """The entries with every local path absolute."""
    found = []
    for entry in source:
        if entry.startswith(DATASET):
            name, colon, split = entry.removeprefix(DATASET).partition(":")
            folder = base / Path(name).expanduser()
            entry = f"{DATASET}{folder if folder.is_dir() else name}{colon}{split}"
        elif entry != STDLIB and not entry.startswith(PACKAGE) and "://" not in entry:
            entry = str(base / Path(entry).expanduser())
        found.append(entry)
    return tuple(found)


def check(name: str, source: Sequence[str]) -> None:
    """Check that local entries exist.

    Raises:
        ValueError: one line that begins with the key `name`.
    """
    files(name, [e for e in source if "://" not in e and not e.startswith(DATASET)])


def files(name: str, source: Sequence[str]) -> list[File]:
    """All files of a source in a fixed order.

    Raises:
        ValueError: an entry names nothing; one line that begins with the key `name`.
    """
    found: list[File] = []
    for entry in source:
        here = sorted(_files(entry, name))
        if not here:
            siblings = Path(entry).parent.glob("*")
            near = did_you_mean(Path(entry).name, (s.name for s in siblings))
            what = "no file in" if Path(entry).is_dir() else "no such file:"
            raise ValueError(f"{name}: {what} {entry}{near}")
        found += here
    return found


def short(source: Sequence[str]) -> str:
    """The last parts of the entries, for labels."""
    return ", ".join(Path(entry).name or entry for entry in source)


# --- finding -----------------------------------------------------------------------------------


def _files(entry: str, name: str) -> Iterator[File]:
    """The files of one entry, in any order, without the hidden files of a folder."""
    if entry.startswith(DATASET):
        yield File(entry.removeprefix(DATASET), entry)
    elif "://" in entry:
        yield from _remote_files(entry, name)
    elif entry == STDLIB:
        yield from _named(_root(entry), _stdlib_files())
    else:
        path = _package_path(entry, name) if entry.startswith(PACKAGE) else entry
        yield from _local_files(path)


def _local_files(entry: str) -> Iterator[File]:
    path = Path(entry)
    if path.is_file() or is_dataset(entry):
        yield File(path.name, str(path))
    elif path.is_dir():
        inside = (f for f in path.rglob("*") if f.is_file())
        visible = (f for f in inside if "/." not in f"/{f.relative_to(path).as_posix()}")
        yield from _named(path, visible)
    else:
        matches = (f for f in map(Path, glob.iglob(entry, recursive=True)) if f.is_file())
        yield from _named(_root(entry), matches)


def is_dataset(entry: str) -> bool:
    """Whether a path is a folder that `datasets` has saved."""
    return any((Path(entry) / mark).is_file() for mark in _DATASET_MARKS)


def _named(root: Path, found: Iterable[Path]) -> Iterator[File]:
    return (File(f.relative_to(root).as_posix(), str(f)) for f in found)


def _root(entry: str) -> Path:
    """The folder that an entry's file names are relative to."""
    if entry == STDLIB:
        return Path(sysconfig.get_path("stdlib"))
    path = Path(entry)
    while glob.has_magic(str(path)):
        path = path.parent
    return path if path.is_dir() else path.parent


def _stdlib_files() -> Iterator[Path]:
    """Without files that differ between installations of one version (build configuration)."""
    root = _root(STDLIB)
    for file in root.rglob("*.py"):
        parts = file.relative_to(root).parts
        built = any(p.startswith(("config-", "_sysconfigdata")) for p in parts)
        if not built and _NOT_SOURCE.isdisjoint(parts):
            yield file


def _package_path(entry: str, name: str) -> str:
    """The path or glob inside a package's folder; the package is not imported."""
    package, _, inside = entry.removeprefix(PACKAGE).partition("/")
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise ValueError(
            f"{name}: no package {package!r} is installed, which {entry} names; "
            "the ready specs need `pip install mptune[examples]`"
        )
    return str(Path(folders[0]) / inside) if inside else folders[0]


def _remote_files(entry: str, name: str) -> Iterator[File]:
    system, path = _file_system(entry, name)
    protocol = entry.partition("://")[0]
    try:
        matches = system.glob(path) if glob.has_magic(path) else [path]
        if not glob.has_magic(path) and system.isdir(path):
            matches = system.find(path)
        if not matches or not system.exists(matches[0]):
            return
    except Exception as error:
        raise ValueError(f"{name}: {entry} cannot be listed: {message_of(error)}") from None
    for match in matches:
        whole = match if "://" in match else f"{protocol}://{match.lstrip('/')}"
        yield File(match.rsplit("/", 1)[-1] if len(matches) == 1 else match, whole)


def _file_system(url: str, name: str = "source") -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{name}: {url} needs a package: {message_of(error)}") from None
    except Exception as error:
        raise ValueError(f"{name}: {url} cannot be opened: {message_of(error)}") from None
    return system, str(path)


# --- content -----------------------------------------------------------------------------------


def _local_digest(path: Path) -> str:
    """SHA-256 of a file, cached until its size, time or inode changes."""
    stat = path.stat()
    state = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    note = cache_directory() / "digests" / key[:2] / key
    if stat.st_size < 2**20:
        return sha256(path)
    try:
        return note.read_text(encoding="ascii")
    except OSError:
        found = sha256(path)
        write_text(note, found)
        return found


def open_dataset(place: str) -> Any:
    """The data set of an `hf:` entry or of a local folder that `datasets` has saved.

    Raises:
        ValueError: it cannot be loaded, or has several splits and none is named.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"source: {place} needs `pip install mptune[datasets]`") from None
    name, _, split = place.removeprefix(DATASET).partition(":")
    datasets.disable_progress_bars()
    try:
        load = datasets.load_from_disk if is_dataset(name) else datasets.load_dataset
        found = load(name)
    except Exception as error:
        raise ValueError(f"source: {place} cannot be loaded: {message_of(error)}") from None
    if not isinstance(found, datasets.DatasetDict):
        return found
    if not split and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        hint = did_you_mean(split, found) if split else ""
        raise ValueError(
            f"source: {place} has the splits {', '.join(found)}; name one, "
            f"e.g. {DATASET}{name}:{next(iter(found))}{hint}"
        )
    return found[split]
