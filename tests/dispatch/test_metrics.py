"""Metrics of a search, scraped over HTTP from a real Ray while it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mptune.dispatch.metrics import METRICS, Metric, SearchMetrics
from mptune.status import Trials
from mptune.trial import Failed, Started
from tests.standings import standing

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "k8s" / "components" / "grafana" / "mptune.json"
PAGE = ROOT / "docs" / "monitoring.md"
PATIENCE_S = 150.0

Scraped = dict[tuple[str, str], float]
"""(Name, value of its own label) -> value, of one study."""


Labels = set[tuple[str, str]]
"""(Name, one of its labels), as Prometheus has them."""


def scrape(address: str) -> tuple[Scraped, dict[str, str], Labels]:
    """Our series, the kind of each, and their labels."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found, kinds, labels = {}, {}, set()
    for family in text_string_to_metric_families(text):
        if family.name.startswith("ray_mptune_"):
            kinds[family.name.removeprefix("ray_")] = family.type
            for sample in family.samples:
                assert sample.labels["study"] == "demo"
                own = sample.labels.get("state") or sample.labels.get("reason") or ""
                found[sample.name.removeprefix("ray_"), own] = sample.value
                labels |= {(sample.name, label) for label in sample.labels}
    return found, kinds, labels


def until(
    address: str, enough: Callable[[Scraped], bool]
) -> tuple[Scraped, dict[str, str], Labels]:
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
        ("mptune_study_trials_used", ""): 2,
        ("mptune_budget_worker_seconds", ""): 1e6,
    }
    running, queued = (now.get(("mptune_study_trials", s), -1) for s in ("running", "queued"))
    return (
        wanted.items() <= now.items()
        and running + queued == 3
        and now.get(("mptune_queue_length", "")) == queued
        and now.get(("mptune_gangs", "busy")) == running
        and now.get(("mptune_spent_worker_seconds", ""), 0) > 0
        and now.get(("mptune_trial_turnaround_seconds_count", ""), 0) >= 1
        and {f"ray_{name}" for name, _ in now} >= {name for name, _ in dashboard_labels()}
    )


@pytest.mark.slow
@pytest.mark.nightly
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
        assert address.startswith("http://127.0.0.1:")
        _, kinds, labels = until(address, is_as_asked)
    finally:
        process.communicate("\n", timeout=100)
    assert not dashboard_labels() - labels, "the dashboard asks for what is not exported"
    assert {name.removeprefix("ray_") for name, _ in labels} <= {name for name, _ in exported()}
    known = {s.name.removesuffix("_total"): s.kind for s in METRICS}
    assert {n.removesuffix("_total"): kind for n, kind in kinds.items()}.items() <= known.items()


@dataclass
class Recorder:
    """Stands in for Ray's instruments."""

    recorded: list[tuple[str, float, dict[str, str]]] = field(default_factory=list)

    def making(self, metric: Metric) -> Any:
        def note(value: float, tags: dict[str, str]) -> None:
            self.recorded.append((metric.name, value, tags))

        return SimpleNamespace(set=note, inc=note, observe=note)

    def of(self, name: str) -> list[tuple[float, dict[str, str]]]:
        return [(value, tags) for known, value, tags in self.recorded if known == name]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(Metric, "make", lambda metric: made.making(metric))
    return made


def test_gauges_have_what_the_status_shows(recorder: Recorder) -> None:
    SearchMetrics().publish(standing(gangs=3, queued=2))
    study = {"study": "quickstart"}
    assert recorder.of("mptune_tokens_per_second") == [(31_234.0, study)]
    assert recorder.of("mptune_queue_longest_wait_seconds") == [(50, study)]
    assert recorder.of("mptune_gangs") == [
        (0, {**study, "state": "starting"}),
        (1, {**study, "state": "idle"}),
        (2, {**study, "state": "busy"}),
    ]
    assert recorder.of("mptune_forecast_left_seconds") == [(600, study)]
    assert recorder.of("mptune_best_nats_per_token") == [], "none has finished"
    assert recorder.of("mptune_budget_gpu_hours") == [], "there is none"


def test_counters_count_what_comes_after_the_first_status(recorder: Recorder) -> None:
    metrics = SearchMetrics()
    metrics.publish(standing(trials=Trials(total=16, complete=5)))  # by earlier drivers
    assert recorder.of("mptune_trials_total") == []
    metrics.publish(standing(trials=Trials(total=16, complete=7, pruned=1)))
    study = {"study": "quickstart"}
    counted = [(2, {**study, "state": "complete"}), (1, {**study, "state": "pruned"})]
    assert recorder.of("mptune_trials_total") == counted
    metrics.publish(standing(study="quickstart/compare", trials=Trials(total=4)))
    assert recorder.of("mptune_trials_total") == counted


def test_what_happened_between_two_statuses_is_counted_once(recorder: Recorder) -> None:
    metrics = SearchMetrics()
    metrics.count(Failed(number=1, reason="stalled", detail=""))
    first = Started(number=1, gang="g", pids=(), total_steps=1, parameters=1)
    metrics.count(first)
    metrics.count(first.model_copy(update={"turnaround_s": 0.5}))
    for _ in range(2):
        metrics.publish(standing())
    study = {"study": "quickstart"}
    assert recorder.of("mptune_trial_faults_total") == [(1, {**study, "reason": "stalled"})]
    assert recorder.of("mptune_trial_turnaround_seconds") == [(0.5, study)]


def test_the_table_of_metrics_is_what_the_code_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(mptune_\w+)` \| (\w+) \| (.+?) \| (.+) \|$", page, re.MULTILINE)
    assert rows == [
        (s.name, s.kind, f"`study`, `{s.label}`" if s.label else "`study`", s.meaning)
        for s in METRICS
    ]


def exported() -> Labels:
    """What the code exports, without what Ray adds: names as in the table, without `ray_`."""
    found: Labels = set()
    for metric in METRICS:
        ends = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        labels = ("study", *filter(None, [metric.label]))
        found |= {(metric.name + end, label) for end in ends for label in labels}
        found |= {(metric.name + end, "le") for end in ends if end == "_bucket"}
    return found


def labels_in(query: str) -> Labels:
    """What a PromQL query asks for; labels that it groups by belong to each of its names."""
    names, labels = {}, set[str]()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            names[node.name] = {m.name for m in node.matchers.matchers}
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            labels.update(node.modifier.labels)

    promql_parser.walk(promql_parser.parse(query), visit)
    return {(name, label) for name, own in names.items() for label in own | labels}


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """(Query, its legend) of each line of the dashboard."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            name, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["query"]["query"]
            ).groups()
            yield f'{name}{{{label}=""}}', ""


def dashboard_labels() -> Labels:
    found: Labels = set()
    for query, legend in dashboard_queries():
        asked = labels_in(query)
        shown = re.findall(r"{{(\w+)}}", legend)
        found |= asked | {(name, label) for name, _ in asked for label in shown}
    return found


def test_the_dashboard_shows_what_is_exported_and_all_of_it() -> None:
    asked = {(name.removeprefix("ray_"), label) for name, label in dashboard_labels()}
    assert not asked - exported()
    assert {name.removesuffix("_bucket") for name, _ in asked} == {m.name for m in METRICS}


def test_each_line_of_the_dashboard_is_of_the_chosen_studies() -> None:
    for query, _ in dashboard_queries():
        names = re.findall(r"ray_mptune_\w+", query)
        assert query.count('{study=~"$study"}') == len(names) or query.endswith('{study=""}')


def test_the_page_names_no_other_metric() -> None:
    names = set(re.findall(r"ray_(mptune_\w+)", PAGE.read_text(encoding="utf-8"))) - {"mptune_"}
    assert names <= {name for name, _ in exported()}
    alerts = re.findall(r"`(\S*ray_mptune_\w+[^`]* > [^`]+)`", PAGE.read_text(encoding="utf-8"))
    assert len(alerts) == 3
    for alert in alerts:
        promql_parser.parse(" ".join(alert.split()))
