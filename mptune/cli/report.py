"""Commands that print the result of a search: its report, and the recommended policy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mptune.cli._command import JSON, LANG, RUN_DIR, argument, command, path
from mptune.errors import NoResultError, plural
from mptune.spec.schema import parameter_count

if TYPE_CHECKING:
    from rich.console import Console

    from mptune.analysis.results import Report
    from mptune.search.run import Run
    from mptune.trackers.base import Scalar


def _size(text: str) -> object:
    try:
        return parameter_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


@command(
    RUN_DIR,
    argument(
        "--size",
        type=_size,
        action="append",
        dest="sizes",
        metavar="N",
        help="extrapolate the trends over model size to N parameters, e.g. 110M (repeatable)",
    ),
    JSON,
    LANG,
)
def run_report(run_dir: Path, sizes: list[float] | None, as_json: bool, lang: str) -> None:
    """Write the report of a run directory, and print its ranking and recommendation.

    examples:
      mptune report runs/quickstart
      mptune report runs/quickstart --lang ja      # in Japanese
      mptune report runs/quickstart --json
      mptune report runs/quickstart --size 110M    # best rate and gap, extrapolated
    """
    from rich.console import Console

    from mptune.report.language import language
    from mptune.report.sections.transfer import at_sizes
    from mptune.search.run import Run

    run = Run.open(run_dir)
    found = run.report(extrapolate_to=sizes)
    answer(Console(highlight=False), run, found, as_json, lang)
    for line in at_sizes(found.by_size, language(lang)) if sizes else ():
        print(line, file=sys.stderr if as_json else sys.stdout)


def answer(console: Console, run: Run, found: Report, as_json: bool, lang: str) -> None:
    """Write the report's files and print the report.

    Raises:
        NoResultError: no trial has finished.
    """
    from mptune import report
    from mptune.report.language import language

    say = language(lang)
    written = report.write(found, run.directory, say)
    if as_json:
        print(run.directory.report_json.read_text(encoding="utf-8"), end="")
    else:
        report.show(console, found, say)
        console.print(say("terminal.written"))
        folders = dict.fromkeys(p.parent for p in written if p.parent.name == "figures")
        for path in [*(p for p in written if p.parent not in folders), *folders]:
            console.print(f"  {path}", soft_wrap=True)
    compared = found.comparison.arms.values() if found.comparison else ()
    if not any(t.finished for t in (*found.trials, *chain.from_iterable(compared))):
        raise NoResultError("no trial finished; see the reasons above")


def publish(run: Run, found: Report, say: Callable[[str], None]) -> None:
    """Give the trackers of the spec the recommendation, the verdict and the report's files."""
    from mptune.report.findings import findings
    from mptune.search import tracking

    if not run.spec.track:
        return
    told = findings(found)
    score, se = told.score
    summary: dict[str, Scalar] = {"lml": score, "lml_se": se}
    summary |= {"recommended": told.headline, "verdict": told.verdict}
    tracking.publish(run.spec, run.directory, summary, say)


@command(
    RUN_DIR,
    path("--export", "FILE", "write the policy as YAML"),
    JSON,
)
def run_best(run_dir: Path, export: Path | None, as_json: bool) -> None:
    """Print the recommended policy of a search or a comparison, or export it as YAML.

    With `training.keep_weights`, also the folder of its weights, which transformers opens.

    examples:
      mptune best runs/quickstart
      mptune best runs/quickstart --export policy.yaml
    """
    import yaml

    from mptune.report.findings import certainty, end_words, nothing_learned
    from mptune.report.language import language
    from mptune.search.run import Run

    run = Run.open(run_dir)
    choice = run.choice()
    best = choice.best()
    recommended = {"policy": run.export_policy(export, best), "model": best.model}
    weights = run.weights(best)
    if as_json:
        lml = best.result.lml.model_dump(mode="json") if best.result else None
        candidate = choice.selection.candidate(best.number) if choice.selection else None
        sure = candidate.model_dump(mode="json") if candidate and not choice.runs else None
        if choice.runs and choice.comparison:
            chances = (s for s in choice.comparison.selection if s.arm == best.arm)
            sure = next(map(asdict, chances), None)
        found = {"stage": best.stage, "trial": best.number, "arm": best.arm, "lml": lml}
        found |= {"learned": not choice.learned_nothing, "weights": weights}
        print(json.dumps({**recommended, **found, "selection": sure}))
    else:
        scope = f", {best.result.lml.scope}" if best.result and best.result.lml.scope else ""
        what, score = f"trial {best.number}", f"{best.nats_per_token:.4f} nats/token"
        if runs := choice.runs:
            what = f"arm {best.arm}"
            score = f"{choice.score[0]:.4f} nats/token (mean of {plural(len(runs), 'seed')})"
        print(f"{what}: {best.label}, {score}{scope}")
        if choice.learned_nothing:
            print(nothing_learned(choice, language()))
        for words in (*certainty(choice, language()), *end_words(run.outlook(), language())):
            print(words)
        print(yaml.safe_dump(recommended, sort_keys=False), end="")
        if weights is not None:
            print(f"weights: {weights}")
