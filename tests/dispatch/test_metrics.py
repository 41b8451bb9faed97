"""Metrics of a search, scraped over HTTP from a real Ray while it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mptune.dispatch.metrics import SERIES

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0

Scraped = dict[tuple[str, str], float]
"""(Name, value of its own label) -> value, of one study."""


def scrape(address: str) -> tuple[Scraped, dict[str, str]]:
    """Our series, and the kind of each."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found, kinds = {}, {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith("ray_mptune_"):
            kinds[family.name.removeprefix("ray_")] = family.type
            for sample in family.samples:
                assert sample.labels["study"] == "demo"
                own = sample.labels.get("state") or sample.labels.get("reason") or ""
                found[sample.name.removeprefix("ray_"), own] = sample.value
    return found, kinds


def until(address: str, enough: Callable[[Scraped], bool]) -> tuple[Scraped, dict[str, str]]:
    give_up = time.monotonic() + PATIENCE_S
    while not enough((found := scrape(address))[0]):
        assert time.monotonic() < give_up, found
        time.sleep(0.3)  # Ray collects at intervals
    return found


def is_as_asked(now: Scraped) -> bool:
    """Two trials have ended, one of them at its second attempt; others run or wait."""
    wanted = {
        ("mptune_trials_total", "complete"): 2,
        ("mptune_trial_faults_total", "worker_died"): 1,
        ("mptune_study_trials", "complete"): 2,
        ("mptune_study_trials", "fail"): 0,
        ("mptune_study_trials_requested", ""): 5,
        ("mptune_budget_worker_seconds", ""): 1e6,
    }
    running, queued = (now.get(("mptune_study_trials", s), -1) for s in ("running", "queued"))
    return (
        wanted.items() <= now.items()
        and running + queued == 3
        and now["mptune_queue_length", ""] == queued
        and now["mptune_gangs", "busy"] == running
        and now["mptune_spent_worker_seconds", ""] > 0
        and now["mptune_trial_turnaround_seconds_count", ""] >= 1
    )


@pytest.mark.slow
def test_a_search_is_scraped_while_it_runs(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.dispatch.scraped", str(tmp_path)], cwd=ROOT, text=True,
        env={**os.environ, "RAY_metrics_report_interval_ms": "500", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        authentication, address = process.stdout.readline().split()
        assert authentication == "token"
        assert address.startswith("127.0.0.1:")
        found, kinds = until(address, is_as_asked)
    finally:
        process.communicate("\n", timeout=60)
    assert ("mptune_budget_gpu_hours", "") not in found, "there is none"
    known = {s.name.removesuffix("_total"): s.kind for s in SERIES}
    assert {n.removesuffix("_total"): kind for n, kind in kinds.items()}.items() <= known.items()


def test_the_table_of_metrics_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(mptune_\w+)` \| (\w+) \| (.+?) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [
        (s.name, s.kind, f"`study`, `{s.label}`" if s.label else "`study`", s.meaning)
        for s in SERIES
    ]
