"""The stores of checkpoints and kept weights, all by the same tests."""

from __future__ import annotations

import fsspec
import pytest

from mptune.artifacts import Folder, Remote, Store, check_url
from mptune.paths import free_port
from tests.objects import bucket

KINDS = {
    "folder": lambda path: Folder(path / "deep" / "root"),
    "file": lambda path: Remote(f"file://{path}/deep/root"),
    "objects": lambda path: Remote(f"{bucket(path / 'bucket')}/deep/root"),
}


@pytest.fixture(params=[*KINDS, "gs"])
def store(request: pytest.FixtureRequest, tmp_path) -> Store:
    if request.param == "gs":
        made: Store = request.getfixturevalue("google")
    else:
        made = KINDS[request.param](tmp_path)
    return made


@pytest.fixture
def google(monkeypatch):
    """gcsfs against an emulator of Google's storage, where both are installed.

    gcsfs would ask by gRPC, which the emulator does not speak, what kind of bucket it is.
    """
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    gcsfs = pytest.importorskip("gcsfs")
    port = free_port()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    yield Remote("gs://bucket/deep/root")
    server.stop()
    gcsfs.GCSFileSystem.clear_instance_cache()


def put(store: Store, **files: str) -> None:
    with store.staged() as folder:
        for name, text in files.items():
            (folder / "a").mkdir(exist_ok=True)
            (folder / "a" / name).write_text(text)
        store.keep(folder, [f"a/{name}" for name in files])


def test_what_is_kept_can_be_fetched(store):
    put(store, x="one", y="two")
    with store.fetched(["a/x", "a/y"]) as folder:
        assert [(folder / "a" / n).read_text() for n in "xy"] == ["one", "two"]
    assert store.children() == ["a"]


def test_what_is_not_there(store):
    assert store.read("latest.json") is None
    assert store.children() == []
    store.remove("a")
    store.remove()
    with store.fetched(["a/x"]) as folder:
        assert not (folder / "a" / "x").exists()


def test_texts_are_replaced(store):
    for text in ("old", "new"):
        store.write("latest.json", text)
        assert store.read("latest.json") == text


def test_one_folder_is_removed_or_all(store):
    put(store, x="one")
    store.write("latest.json", "{}")
    store.remove("a")
    assert store.children() == ["latest.json"]
    store.remove()
    assert store.children() == []


def test_a_finished_folder_takes_the_place_of_another(store, tmp_path):
    for text in ("old", "new"):
        aside = tmp_path / "aside"
        aside.mkdir()
        for name in ("config.json", "weights"):
            (aside / name).write_text(text)
        if text == "old":
            (aside / "stale").write_text(text)
        with store.staged():
            store.take(aside, "model", last="config.json")
        assert not aside.exists()
    assert store.children() == ["model"]
    model = store.inside("model")
    assert model.children() == ["config.json", "weights"]
    with model.fetched(["weights"]) as folder:
        assert (folder / "weights").read_text() == "new"


def test_what_marks_a_folder_as_whole_comes_last(tmp_path, monkeypatch):
    store, kept = KINDS["objects"](tmp_path), []
    monkeypatch.setattr(type(store._files), "put_file", lambda self, a, b: kept.append(b))
    monkeypatch.setattr(type(store._files), "size", lambda self, path: 0)
    (tmp_path / "aside").mkdir()
    for name in ("config.json", "a", "weights"):
        (tmp_path / "aside" / name).touch()
    store.take(tmp_path / "aside", "model", last="config.json")
    assert [path.rpartition("/")[2] for path in kept] == ["a", "weights", "config.json"]


def test_a_store_that_keeps_less_than_it_was_given(tmp_path, monkeypatch):
    store = Remote(f"file://{tmp_path}/root")
    monkeypatch.setattr(store._files, "size", lambda path: 1)
    with pytest.raises(OSError, match="a/x has 1 of 3 bytes"):
        put(store, x="one")


@pytest.mark.parametrize(
    ("url", "why"),
    [("nowhere://x", "Protocol not known: nowhere"), ("oci://bucket/x", "ocifs")],
)
def test_urls_that_cannot_be_opened(url, why):
    with pytest.raises(ValueError, match=why):
        check_url(url)
