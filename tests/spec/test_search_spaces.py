"""The ready specs are valid and, but for the one at full scale, their data are at hand."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from mptune.spec.schema import build
from mptune.spec.source import SpecFile
from mptune.training.schedule import learning_rate_factor

FOLDER = Path(__file__).parents[2] / "search_spaces"
SPECS = sorted(p for p in FOLDER.glob("*.yaml") if p.stem != "claims")  # these are several
SMALL = {
    "weather": {"train": 8499, "summer": 558},
    "watch": {"train": 1392, "left arm": 2085},
    "digits": {"train": 1294, "nines": 180},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The specs, with the data that one of them has a script for."""
    folder = tmp_path_factory.mktemp("search_spaces")
    for path in SPECS:
        shutil.copy(path, folder)
    runpy.run_path(str(FOLDER / "watch.py"))["main"](str(folder / "watch.npz"))
    return folder


@pytest.mark.parametrize("name", [path.name for path in SPECS])
def test_is_valid(folder, name):
    path = folder / name
    spec = SpecFile.read(path).validate()
    assert spec.compare is not None
    assert spec.name == path.stem.replace("_", "-")


@pytest.mark.parametrize("name", SMALL)
def test_examples_hold_what_the_documents_say(folder, name, tmp_path):
    path = folder / f"{name}.yaml"
    spec = SpecFile.read(path).validate()
    table = build("data", spec.data).resolved(path.parent).prepare(tmp_path)
    found = {"train": len(table.train)} | {d: len(table.domain(d)) for d in table.domains}
    assert {key: found[key] for key in SMALL[name]} == SMALL[name]
    assert len(table.heldout) >= 2


def test_the_phases_have_the_exposure_and_the_learning_rates_of_their_recipe():
    spec = SpecFile.read(FOLDER / "phases.yaml").validate()
    policy = build("policy", spec.compare.arms["phases"]["policy"])
    phases = {(0, 0.767): 0.30, (0.767, 0.967): 0.15, (0.967, 1): 0.05}
    length, mean, count = 1000, 0.0, np.arange(1, 1001)
    for (begin, end), rate in phases.items():
        for s in (begin, (begin + end) / 2, end - 1e-9):
            assert policy.pmf(length, s) @ count == pytest.approx(rate * length)
        mean += (end - begin) * rate
        exposed = policy.omega(length, steps=1000)[round(rate * length) - 1]
        assert exposed == pytest.approx(end - begin, abs=1e-9)
    assert mean == pytest.approx((2.3 * 0.30 + 0.6 * 0.15 + 0.1 * 0.05) / 3, abs=1e-3)
    assert policy.mean_rate(length, steps=1000) == pytest.approx(mean)
    factors = [learning_rate_factor(spec.training.schedule, s) for s in (0.02, 0.967, 0.9835, 1)]
    assert factors == pytest.approx([1, 1, 0.5, 0])
    assert spec.training.context.until == 0.767


@pytest.mark.slow
def test_the_text_spec_keeps_its_domains_out_of_training(tmp_path):
    path = FOLDER / "text.yaml"
    spec = SpecFile.read(path).validate()
    table = build("data", spec.data).resolved(path.parent).prepare(tmp_path)
    assert table.domains == ("documentation", "bible", "typing errors")
    assert table.vocabulary_size == 1024
    assert 1.5 < table.domain_bytes["bible"] < table.bytes_per_token
