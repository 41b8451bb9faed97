"""One good checkpoint at any time."""

from __future__ import annotations

from pathlib import Path

import pytest

from mptune.training.checkpoint import Checkpoints
from mptune.training.ranks import Ranks
from mptune.training.schedule import Spent


class Engine:
    """Writes one file, unless it is told to die before."""

    def __init__(self):
        self.dies = False

    def save_checkpoint(self, root, tag, client_state, save_latest):
        assert not save_latest
        (Path(root) / tag).mkdir(parents=True)
        if self.dies:
            raise OSError("no space left")
        self.saved = client_state

    def load_checkpoint(self, root, tag):
        assert (Path(root) / tag).is_dir()
        return tag, self.saved


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoint", "abc", Ranks())


def test_a_fresh_start(checkpoints):
    assert checkpoints.load(Engine()) == Spent()


def test_only_the_last_good_one_is_kept(checkpoints):
    engine = Engine()
    for steps in (3, 8):
        checkpoints.save(engine, Spent(steps=steps, loss_curve=[(0.1, 2.0)]))
    assert sorted(p.name for p in checkpoints.root.iterdir()) == ["latest.json", "step00000008"]
    assert checkpoints.load(engine) == Spent(steps=8, loss_curve=[(0.1, 2.0)])


def test_dying_while_saving_leaves_the_last_good_one(checkpoints):
    engine = Engine()
    checkpoints.save(engine, Spent(steps=3))
    engine.dies = True
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(engine, Spent(steps=8))
    assert checkpoints.load(engine).steps == 3


def test_another_trial_does_not_go_on_from_it(checkpoints):
    checkpoints.save(Engine(), Spent(steps=3))
    assert Checkpoints(checkpoints.root, "other", Ranks()).load(Engine()) == Spent()


def test_removal(checkpoints):
    checkpoints.save(Engine(), Spent(steps=3))
    checkpoints.remove()
    assert not checkpoints.root.exists()
