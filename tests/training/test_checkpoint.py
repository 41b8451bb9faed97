"""Checkpoints: whole or not at all, verified, and a good one at any time, in any store."""

from __future__ import annotations

from ast import literal_eval
from pathlib import Path
from types import SimpleNamespace

import pytest

from mptune.artifacts import Folder, Remote
from mptune.errors import DamagedCheckpoint
from mptune.training.checkpoint import Checkpoints, owner
from mptune.training.ranks import AgreedFailure, Ranks
from mptune.training.schedule import Spent
from tests.objects import bucket


class Engine:
    """Writes two files, unless it is told to die after the first."""

    lr_scheduler = None

    def __init__(self):
        self.dies = False
        self.optimizer = SimpleNamespace(param_groups=[])

    def save_checkpoint(self, root, tag, client_state, save_latest):
        assert not save_latest
        (Path(root) / tag).mkdir(parents=True)
        (Path(root) / tag / "mp_rank_00_model_states.pt").write_text(repr(client_state["spent"]))
        if self.dies:
            raise OSError("a cable was pulled")
        (Path(root) / tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_text("moments")

    def load_checkpoint(self, root, tag):
        text = (Path(root) / tag / "mp_rank_00_model_states.pt").read_text()
        return tag, {"spent": literal_eval(text)}

    def load_universal_checkpoint(self):
        return False


class Place:
    """A store, and the files that it keeps things in."""

    def __init__(self, kind, path):
        self.files = path / "files"
        self.files.mkdir()
        kinds = {
            "folder": lambda: Folder(self.files),
            "file": lambda: Remote(f"file://{self.files}"),
            "objects": lambda: Remote(f"{bucket(self.files)}/root"),
        }
        self.store = kinds[kind]()

    def checkpoints(self, fingerprint="abc"):
        """As a new process has them."""
        return Checkpoints(self.store, fingerprint, Ranks())

    def damage(self, tag):
        """Flip a bit in one of its files."""
        file = next(f for f in sorted(self.files.rglob("*")) if tag in str(f) and f.is_file())
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


@pytest.fixture(params=["folder", "file", "objects"])
def place(request, tmp_path):
    return Place(request.param, tmp_path)


@pytest.fixture
def saved(place):
    """A training that was checkpointed after 3, 8 and 9 steps."""
    checkpoints = place.checkpoints()
    for steps in (3, 8, 9):
        checkpoints.save(Engine(), Spent(steps=steps, loss_curve=[(0.1, 2.0)]))
    return place


def test_a_fresh_start(place):
    assert place.checkpoints().load(Engine()) == Spent()


def test_the_newest_is_loaded_and_the_one_before_is_kept(saved):
    assert saved.store.children() == ["latest.json", "step00000008", "step00000009"]
    assert saved.checkpoints().load(Engine()) == Spent(steps=9, loss_curve=[(0.1, 2.0)])


def test_dying_while_saving_leaves_the_last_good_one(saved):
    engine, checkpoints = Engine(), saved.checkpoints()
    assert checkpoints.load(engine).steps == 9
    engine.dies = True
    with pytest.raises(OSError, match="cable"):
        checkpoints.save(engine, Spent(steps=12))
    assert saved.checkpoints().load(engine).steps == 9


def test_dying_before_the_marker_leaves_the_last_good_one(saved, monkeypatch):
    checkpoints = saved.checkpoints()
    assert checkpoints.load(Engine()).steps == 9
    with monkeypatch.context() as broken:
        broken.setattr(type(saved.store), "write", lambda *given: (_ for _ in ()).throw(OSError))
        with pytest.raises(AgreedFailure):
            checkpoints.save(Engine(), Spent(steps=12))
    assert saved.store.children() == ["latest.json", "step00000009", "step00000012"]
    assert saved.checkpoints().load(Engine()).steps == 9


def test_a_damaged_one_falls_back_to_the_one_before(saved):
    saved.damage("step00000009")
    checkpoints = saved.checkpoints()
    assert checkpoints.load(Engine()).steps == 8
    checkpoints.save(Engine(), Spent(steps=20))
    assert saved.store.children() == ["latest.json", "step00000008", "step00000020"]


def test_a_file_that_is_gone_or_cut_off_is_damage(saved):
    files = [f for f in saved.files.rglob("*") if f.is_file() and "step00000009" in str(f)]
    files[0].unlink()
    assert saved.checkpoints().load(Engine()).steps == 8
    rest = [f for f in saved.files.rglob("*") if f.is_file() and "step00000008" in str(f)]
    rest[0].write_bytes(rest[0].read_bytes()[:-1])
    with pytest.raises(AgreedFailure) as caught:
        saved.checkpoints().load(Engine())
    assert caught.value.reason == "damaged_checkpoint"


def test_where_none_is_as_it_was_written_all_are_removed(saved):
    saved.damage("step00000008")
    saved.damage("step00000009")
    with pytest.raises(AgreedFailure, match="step00000009 is not as it was written") as caught:
        saved.checkpoints().find()
    assert isinstance(caught.value.__cause__, DamagedCheckpoint)
    assert saved.store.children() == []
    assert saved.checkpoints().load(Engine()) == Spent()


def test_one_that_cannot_be_read_is_removed(saved):
    engine = Engine()
    engine.load_checkpoint = lambda root, tag: 1 / 0
    with pytest.raises(AgreedFailure, match="cannot be read and was removed: division by zero"):
        saved.checkpoints().load(engine)
    assert saved.store.children() == []


def test_another_trial_does_not_go_on_from_it(saved):
    assert saved.checkpoints("other").load(Engine()) == Spent()


@pytest.mark.parametrize("marker", ["{", "[]", '{"tag": "step00000003", "fingerprint": "abc"}'])
def test_a_marker_of_another_making_is_none(place, marker):
    place.store.write("latest.json", marker)
    assert place.checkpoints().load(Engine()) == Spent()


def test_removal(saved):
    saved.checkpoints().remove()
    assert saved.store.children() == []


def test_files_belong_to_the_rank_that_writes_them():
    assert owner("step1/bf16_zero_pp_rank_12_mp_rank_00_optim_states.pt") == 12
    assert owner("step1/mp_rank_00_model_states.pt") == 0
