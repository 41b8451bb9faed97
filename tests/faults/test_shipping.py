"""A shared cluster whose nodes have an older mptune, or none of a plugin: whose code runs there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import mptune
from tests import plain
from tests.faults.cluster import RayCluster, ray_cluster
from tests.faults.search import Searches

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

POLICY = """\
from typing import Literal

from mptune.policies.distributions import Uniform


class Mine(Uniform):
    kind: Literal["mine"] = "mine"
"""
QUICK = (
    "--set", "search.trials=1", "--set", "policy={kind: mine}",
    "--set", "resources.ship_code=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Its nodes find the mptune of last year first."""
    old = tmp_path_factory.mktemp("old")
    package = Path(mptune.__file__).parent
    shutil.copytree(package, old / "mptune", ignore=shutil.ignore_patterns("__pycache__"))
    init = old / "mptune" / "__init__.py"
    init.write_text(init.read_text().replace(mptune.__version__, "0.0.9"))
    with ray_cluster(2, PYTHONPATH=str(old)) as made:
        yield made


@pytest.fixture(scope="module")
def searches(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Searches:
    """The driver has this mptune, and an installed package with a policy of its own."""
    folder = tmp_path_factory.mktemp("shipping")
    site = plain.write_plugin(folder / "site", "theirs", "policies", "mine", POLICY)
    path = os.pathsep.join(
        map(str, (site, plain.install(folder), Path(mptune.__file__).parents[1]))
    )
    env = {**cluster.env, "PYTHONPATH": path}
    return Searches(folder, env, (*QUICK, "--address", cluster.address))


def test_workers_run_the_drivers_mptune_and_find_its_plugins(cluster, searches):
    searches.start("shipped").end()
    ((_, state, *_),) = searches.outcome("shipped")
    assert state == "COMPLETE"
    assert cluster.leftovers() == []


def test_without_shipping_another_version_is_named_with_what_to_do(searches):
    out = searches.start("refused", "--set", "resources.ship_code=false").end(code=3)
    assert re.search(rf"has mptune 0\.0\.9 on \S+, the driver has {mptune.__version__}: ", out)
    assert "install the same version on every node, or leave resources.ship_code on" in out
