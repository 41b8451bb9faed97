"""What needs a GPU: steps do not wait for it, memory does not grow, utilisation is reported."""

from __future__ import annotations

import pytest
import torch

from mptune.paths import free_port
from mptune.training import engine as ds
from mptune.training.deepspeed_private import to_universal
from mptune.training.loop import Loop
from mptune.training.schedule import Spent
from tests.training.test_feed import LENGTH, SYMBOLS, inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

WARM, STEPS = 5, 25


@pytest.fixture(scope="module")
def ranks():
    yield ds.join(0, 1, 0, "127.0.0.1", free_port())
    ds.leave()


class Watched:
    """A control that forbids waiting for the GPU after some steps, and notes its memory."""

    def __init__(self):
        self.asked, self.memory = 0, []

    def stop_requested(self):
        self.asked += 1
        self.memory.append(torch.cuda.max_memory_allocated())
        torch.cuda.set_sync_debug_mode("error" if self.asked >= WARM else "default")
        return "pruned" if self.asked == STEPS else None

    def go_on(self, rung):
        return True


class Steps:
    """A control that ends a training after some steps."""

    def __init__(self):
        self.left = 10

    def stop_requested(self):
        self.left -= 1
        return None if self.left else "pruned"

    def go_on(self, rung):
        return True


def built(given):
    torch.manual_seed(0)
    return given.family.build(SYMBOLS + 2, SYMBOLS, LENGTH)


class NoCheckpoints:
    def load(self, engine):
        return Spent()


def trained(ranks, given):
    """Train some steps; the control, and the progress events."""
    module = given.family.build(SYMBOLS + 2, SYMBOLS, LENGTH)
    control = Watched()
    try:
        with ds.engine(module, given.training, ranks) as engine:
            events = list(Loop(given, engine, ranks, NoCheckpoints(), None).run(control))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return control, events


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("how", ["full", "padded", "packed"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_no_step_waits_for_the_gpu(ranks, family, how, precision):
    """At ZeRO 0; DeepSpeed waits at higher stages."""
    given = inputs(family, None, how != "full", pack=how == "packed", precision=precision)
    control, _ = trained(ranks, given)
    assert control.asked == STEPS


def test_memory_does_not_grow(ranks):
    control, _ = trained(ranks, inputs())
    assert control.memory[-1] == control.memory[WARM]


def test_progress_has_the_utilisation(ranks, monkeypatch):
    monkeypatch.setattr(f"{Loop.__module__}.PROGRESS_EVERY_S", 0.0)
    monkeypatch.setattr(f"{__name__}.WARM", STEPS + 1)  # to read the norm waits for the GPU
    _, events = trained(ranks, inputs())
    assert events[-1].flops_per_s > 0
    assert 0 < events[-1].utilisation < 1


def test_compiled_steps_train_alike(ranks):
    """The weights after some steps, compiled and not."""
    found = []
    for compiled in (False, True):
        given = inputs(compile=compiled)
        module = built(given)
        with ds.engine(module, given.training, ranks) as engine:
            list(Loop(given, engine, ranks, NoCheckpoints(), None).run(Steps()))
        found.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone())
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()


def test_training_goes_on_from_other_workers(ranks, tmp_path):
    """A converted checkpoint trains on: the fused optimizer needs its step counters on the GPU."""
    for stage in (1, 3):
        given = inputs(precision="bf16", zero_stage=stage)

        def trained_on(engine, given=given):
            list(Loop(given, engine, ranks, NoCheckpoints(), None).run(Steps()))

        folder = tmp_path / str(stage)
        with ds.engine(built(given), given.training, ranks) as engine:
            trained_on(engine)
            state = {"client_state": {"spent": {}}, "save_latest": False}
            engine.save_checkpoint(str(folder), tag="one", **state)
        to_universal(folder / "one", folder / "universal")
        with ds.engine(built(given), given.training, ranks, universal=True) as engine:
            ds.load(engine, folder, "universal")
            trained_on(engine)
