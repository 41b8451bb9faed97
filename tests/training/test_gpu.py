"""What needs a GPU: the step does not wait for it, its memory stands, and how busy it is."""

from __future__ import annotations

import pytest
import torch

from mptune.paths import free_port
from mptune.training import engine as ds
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


@pytest.mark.parametrize("how", ["full", "padded", "packed"])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_no_step_waits_for_the_gpu(ranks, family, how):
    """With DeepSpeed's ZeRO 0 in fp32 and no clipping, which do not wait either."""
    given = inputs(family, None, how != "full", pack=how == "packed", gradient_clipping=0)
    control, _ = trained(ranks, given)
    assert control.asked == STEPS


def test_memory_stands(ranks):
    control, _ = trained(ranks, inputs(gradient_clipping=0))
    assert control.memory[-1] == control.memory[WARM]


def test_utilisation_is_told(ranks, capsys):
    _, events = trained(ranks, inputs(gradient_clipping=0))
    assert events[-1].flops_per_s > 0
    with capsys.disabled():
        print(f"{torch.cuda.get_device_name()}: {events[-1].utilisation} of the peak, tiny model")
