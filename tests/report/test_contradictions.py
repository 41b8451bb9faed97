"""A report says one thing: whole reports are read for sentences that exclude each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mptune.analysis.results import Report
from mptune.report.pages import markdown
from tests.report.conftest import comparison, make
from tests.report.test_model import counted, with_lml

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*/report.json"))


def contradictions(text: str) -> list[str]:
    """What a report in Markdown says against itself."""
    return list(_contradictions(text.replace("\\", "")))


def _contradictions(text: str) -> Iterator[str]:
    for words in re.findall(r"^- \[ \] undecided against (.*)$", text, re.M):
        baseline, _, rest = words.partition(": ")
        names, _, what = rest.partition(". ")
        for arm in names.split(", "):
            begins = f"Undecided: {arm} against {baseline} "
            verdict = next((v for v in text.splitlines() if v.startswith(begins)), "")
            if not what or not verdict.endswith(what):
                yield f"{arm}: {what!r} in the checklist, {verdict!r} above"
    if "more seeds may" in text and "No affordable number" in text:
        yield "more seeds may decide it, and no affordable number would"
    runs = re.search(r"from its (\d+) runs", text)
    if "not trained again" in text and (runs or "recommended arm was trained with" in text):
        yield f"not trained again, {runs[0] if runs else 'an arm with several seeds'}"
    yield from re.findall(r"^Trial \d+ .*$", text, re.M)
    yield from re.findall(r"−[\d.]+(?: ± [\d.]+)? (?:nats per \w+ )?(?:lower|behind|ahead).*", text)
    yield from re.findall(r".* (?:beats|loses to) .* by −.*", text)
    finished = re.search(r"(\d+) of \d+ trials? finished(?: \((\d+) candidates)?", text)
    candidates = re.search(r"of (\d+) finished candidates", text)
    if finished and candidates and candidates[1] != (finished[2] or finished[1]):
        yield f"{candidates[0]}, {finished[0]}"
    if re.search(r"^\d+ training runs", text, re.M) and re.search("No trial (was|has)", text):
        yield "training runs, and a section that says there are none"
    headline = re.search(r"^\*\*(.*) on (.*)\*\*$", text, re.M)
    advice = re.search(r"Pre-train (.*?) with (.*?): ", text)
    if headline and advice and headline.groups() != advice.groups()[::-1]:
        yield f"{headline[0]}, {advice[0]}"
    for line in re.findall(r".* (?:beats|loses to) .*", text):
        ends = re.search(r"interval (−?[\d.]+) to (−?[\d.]+)", line)
        if ends and float(ends[1].replace("−", "-")) <= 0:
            yield f"decided, and the interval has 0: {line}"
    for line in re.findall(r".*\| ≥ .*\|", text):
        if float(re.findall(r"([\d.]+) %", line)[-1]) > 50:
            yield f"reached, and needs at least so much: {line}"
    if "Nothing was learned" in text:
        yield from re.findall(r".*(?:Pre-train|the recommended (?:trial|arm|policy)).*", text)
    best = re.search(r"is the best of \d+ arms with probability (.*?) under", text)
    first = re.search(r"Probability of being best\n\n- .*: (.*)", text)
    if best and first and best[1] != first[1]:
        yield f"probability {best[1]} and {first[1]}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_examples_do_not_contradict_themselves(path: Path) -> None:
    report = Report.model_validate(json.loads(path.read_text(encoding="utf-8"))["input"])
    assert contradictions(markdown(report)) == []


def test_made_up_reports_do_not_contradict_themselves(
    everything: Report, compared: Report, searched: Report
) -> None:
    rows = list(searched.trials)
    rows[5] = with_lml(rows[5], -0.5)  # a lucky run of the policy that loses on paired seeds
    overruled = make(tuple(rows), comparison())
    alone = make((), comparison(("fixed 15 %", "fixed 30 %", "accumulated")))
    made = (everything, compared, searched, overruled, alone, undecided(compared))
    for report in (*made, *(counted(each, -0.1) for each in made)):
        assert contradictions(markdown(report)) == []


def undecided(report: Report) -> Report:
    """The report with one pair that no affordable number of seeds decides."""
    found = report.comparison
    assert found is not None
    open_pair = replace(
        found.differences[0], verdict="undecided", more_seeds=None, sequences_needed=None
    )
    changed = found.model_copy(update={"differences": (open_pair,)})
    return report.model_copy(update={"comparison": changed})


CHECKLIST = "- [ ] undecided against a: b. 4 more seeds for each arm would probably decide it."


@pytest.mark.parametrize(
    "text",
    [
        "- [ ] undecided against a: b; more seeds may decide it\nUndecided: b against a differ.",
        f"{CHECKLIST}\nUndecided: b against a differ. No affordable number would.",
        "Corrected, from its 5 runs: −2.9.\n- [ ] the trial was not trained again",
        "Trial 1 is the best of the search's 5 candidates",
        "On noisy: −1.0 ± 0.1 nats per token, −0.2 ± 0.1 lower than in distribution.",
        "It scores −1.0 nats per token, −0.1 lower than in the search.",
        "A beats b by −3 ± 2 nats per sequence",
        "of 5 finished candidates it is best\n- [x] 6 of 6 trials finished",
        "16 training runs, 3 positions\n\nNo trial has finished.",
        "**uniform on bert 64×2**\n\nPre-train bert 64×2 with fixed 15 %: of 2",
        "A loses to b by 14 ± 13 nats per sequence (95 % interval 0 to 27; 8 seeds each).",
        "**Nothing was learned**\n\n- [ ] the recommended trial was not trained again",
        "| a | b | FLOPs | ≥ 0.32 × | 0.32 – ∞ | 99.0 % |",
    ],
)
def test_contradictions_are_found(text: str) -> None:
    assert contradictions(text)
    assert contradictions(f"{CHECKLIST}\nUndecided: b against a differ. 4 more") != []
