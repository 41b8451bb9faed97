"""report.html: one file that needs nothing else, in light and dark, on a phone and on a desk.

First screen: what to train with, the verdict, how certain, what it cost, the checklist. Below:
figures, ranking, every trial, failures, method, versions, how to replay.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from importlib.resources import files

from mptune.report.figures import Figure
from mptune.report.findings import Findings, findings
from mptune.report.markup import Html, element, join
from mptune.report.model import Ranked, ReportInput, TrialRow, accuracy_at, loss_at, shifts
from mptune.report.text import METHOD, accuracy_words, loss_words, plan_words, rung_words
from mptune.report.words import count, duration, minus, per_token, plural, power, probability

_TONES = {"better": "good", "worse": "good", "equivalent": "calm"}
"""Colour of the verdict: decided, for whichever side, or equivalent; else open."""


def page(report: ReportInput, figures: Sequence[Figure]) -> str:
    """The whole page; no request leaves it, and every string in it is escaped."""
    found = findings(report)
    body = element(
        "main",
        _header(report),
        _hero(report, found),
        _cards(report, found),
        _section("Figures", *(_figure(figure) for figure in figures)) if figures else None,
        _section("Ranking", _ranking(found.ranked)),
        _shifted(found.ranked),
        _section("Every trial", _trials(report.trials)),
        _section("Failures", *_failures(found)) if found.failures else None,
        _section("Method", _method(report)),
        _section("Replay", _replay(report)),
        _footer(report),
    )
    return "<!doctype html>\n" + element("html", _head(report), element("body", body), lang="en")


def _asset(name: str) -> Html:
    return Html(files("mptune.report").joinpath("assets", name).read_text(encoding="utf-8"))


def _head(report: ReportInput) -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{report.study} · mptune report"),
        element("style", _asset("report.css")),
        element("script", _asset("report.js")),
    )


def _section(title: str, *children: Html | None) -> Html:
    return element("section", element("h2", title), *children)


# --- first screen ------------------------------------------------------------------------------


def _header(report: ReportInput) -> Html:
    return element(
        "header",
        element("p", "mptune report", class_="eyebrow"),
        element("h1", report.study),
        element("p", report.data, class_="lead"),
    )


def _hero(report: ReportInput, found: Findings) -> Html:
    return element(
        "section",
        element("p", "Recommendation", class_="eyebrow"),
        _headline(found),
        *(element("p", words) for words in found.recommendation),
        element("dl", *_facts(report, found), class_="facts"),
        class_="hero",
    )


def _headline(found: Findings) -> Html:
    if found.choice is None:
        return element("p", found.headline, class_="headline")
    size = element("span", f"on {found.choice.model_words}", class_="size")
    return element("p", found.choice.policy_words, " ", size, class_="headline")


def _facts(report: ReportInput, found: Findings) -> Iterator[Html]:
    best = found.recommended
    if best is not None:
        yield _fact("LML of the best trial", per_token(best.nats_per_token, best.half_width),
                    "nats per token, 95 %")  # fmt: skip
        if best.bits_per_byte is not None:
            yield _fact("Code length", f"{best.bits_per_byte:.3f}", "bits per byte")
        yield _fact("Size", count(best.parameters), "parameters")
    finished = f"{sum(t.finished for t in report.trials)} of {len(report.trials)}"
    yield _fact("Trials", finished, "finished")


def _fact(term: str, value: str, unit: str) -> Html:
    return element(
        "div",
        element("dt", term),
        element("dd", element("strong", value), " ", element("span", unit)),
    )


def _cards(report: ReportInput, found: Findings) -> Html:
    return element(
        "section",
        _verdict_card(found),
        _certainty_card(report, found),
        _card("What it cost", _cost(report)),
        _card("Checklist", _checklist(found)),
        class_="cards",
    )


def _card(title: str, *children: Html | None, class_: str = "card") -> Html:
    return element("article", element("h2", title), *children, class_=class_)


def _verdict_card(found: Findings) -> Html:
    tone = _TONES.get(found.verdict_word, "open")
    return _card(
        found.verdict_title,
        element("p", found.verdict_label, class_=f"badge {tone}"),
        *(element("p", words) for words in found.verdict),
        *(element("p", flip.words, class_="flip" if flip.disagree else None)
          for flip in found.flips),
        class_="card verdict",
    )  # fmt: skip


def _certainty_card(report: ReportInput, found: Findings) -> Html:
    selection = report.comparison.selection if report.comparison else ()
    bars = [
        element(
            "li",
            element("span", s.arm),
            element("span", probability(s.probability), class_="num"),
            element("progress", value=f"{s.probability:.4f}", max=1),
        )
        for s in sorted(selection, key=lambda s: -s.probability)
    ]
    label = element("p", "Probability of being the best", class_="label") if bars else None
    listed = element("ul", *bars, class_="bars") if bars else None
    return _card("How certain", element("p", found.certainty), label, listed)


def _cost(report: ReportInput) -> Html:
    spend = report.spend
    rows = [
        ("training runs", str(spend.trials)),
        ("positions", count(spend.tokens)),
        ("FLOPs", power(spend.flops)),
        ("worker time", duration(spend.worker_s)),
    ]
    if spend.wall_s is not None:
        rows.append(("on the clock", duration(spend.wall_s)))
    return _pairs(rows)


def _pairs(rows: Sequence[tuple[str, str]]) -> Html:
    cells = (
        element("div", element("dt", term), element("dd", value, class_="num"))
        for term, value in rows
    )
    return element("dl", *cells, class_="pairs")


def _checklist(found: Findings) -> Html:
    items = (
        element(
            "li",
            element("span", "✓" if check.ok else "!", class_="mark", aria_hidden="true"),
            element("span", "holds: " if check.ok else "missing: ", class_="unseen"),
            element("span", check.words),
            class_="ok" if check.ok else "missing",
        )
        for check in found.checks
    )
    return element("ul", *items, class_="checks")


# --- below -------------------------------------------------------------------------------------


def _figure(figure: Figure) -> Html:
    download = "data:image/png;base64," + base64.b64encode(figure.png).decode()
    return element(
        "figure",
        element("h3", figure.title),
        element("div", Html(figure.wide), class_="wide", role="img", aria_label=figure.caption),
        element("div", Html(figure.narrow), class_="narrow", role="img", aria_label=figure.caption),
        element(
            "figcaption",
            figure.caption,
            " ",
            element("a", "PNG", href=download, download=f"{figure.name}.png"),
        ),
    )


def _table(head: Sequence[tuple[str, str]], rows: Sequence[Html], label: str) -> Html:
    """A table whose rows are sorted by a click on a header; `head` is (title, class)."""
    cells = (
        element("th", element("button", title, type="button"), class_=class_ or None, scope="col")
        for title, class_ in head
    )
    table = element(
        "table",
        element("thead", element("tr", *cells)),
        element("tbody", *rows),
        class_="sortable",
    )
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def _number(words: str, value: float | None) -> Html:
    """A right-aligned cell that is sorted by its value, not by its words."""
    return element("td", words, class_="num", data_sort=_sortable(value))


def _sortable(value: float | None) -> str | None:
    return None if value is None else repr(float(value))


def _ranking(ranked: Sequence[Ranked]) -> Html:
    if not ranked:
        return element("p", "No trial has finished.")
    head = [
        ("#", "num"), ("Policy and size", ""), ("LML, nats/token", "num"),
        ("Bits/byte", "num"), ("Loss at 15 %", "num"), ("Accuracy at 15 %", "num"),
        ("Parameters", "num"), ("FLOPs", "num"),
        ("Time", "num"), ("Trial", "num"),
    ]  # fmt: skip
    return _table(head, [_ranked_row(row) for row in ranked], "Ranking of finished trials")


def _ranked_row(row: Ranked) -> Html:
    cost, bits = row.result.cost, row.bits_per_byte
    return element(
        "tr",
        _number(str(row.place), row.place),
        _label(row.trial),
        _number(per_token(row.nats_per_token, row.half_width), row.nats_per_token),
        _number(f"{bits:.3f}" if bits is not None else "–", bits),
        _number(loss_words(row), loss_at(row.result, 0.15)),
        _number(accuracy_words(row), accuracy_at(row.result, 0.15)),
        _number(count(row.parameters), row.parameters),
        _number(power(cost.flops), cost.flops),
        _number(duration(cost.total_s), cost.total_s),
        _number(str(row.trial.number), row.trial.number),
        class_="first" if row.place == 1 else None,
    )


def _shifted(ranked: Sequence[Ranked]) -> Html | None:
    """Scores on the held-out distributions beside home, if the data have any."""
    domains = [s.domain for s in shifts(ranked[0])] if ranked else []
    if not domains:
        return None
    head = [("#", "num"), ("Policy and size", ""), *((d, "num") for d in ("home", *domains))]
    table = _table(head, [_shift_row(row) for row in ranked], "Scores on shifted domains")
    note = element("p", "LML in nats per token with 95 % intervals, at home and elsewhere.")
    return _section("Shifted domains", note, table)


def _shift_row(row: Ranked) -> Html:
    cells = (
        _number(per_token(s.nats_per_token, s.half_width), s.nats_per_token) for s in shifts(row)
    )
    return element(
        "tr",
        _number(str(row.place), row.place),
        _label(row.trial),
        _number(per_token(row.nats_per_token, row.half_width), row.nats_per_token),
        *cells,
        class_="first" if row.place == 1 else None,
    )


def _label(trial: TrialRow) -> Html:
    arm = element("span", trial.arm, class_="arm") if trial.arm else None
    size = element("span", trial.model_words, class_="size")
    return element("td", trial.policy_words, " ", arm, " ", size, class_="policy")


def _trials(trials: Sequence[TrialRow]) -> Html:
    if not trials:
        return element("p", "No trial was started.")
    head = [
        ("Trial", "num"), ("Policy and size", ""), ("State", ""), ("LML, nats/token", "num"),
        ("At rungs, nats/token", ""), ("Time", "num"),
    ]  # fmt: skip
    return _table(head, [_trial_row(trial) for trial in trials], "Every trial")


def _trial_row(trial: TrialRow) -> Html:
    lml = trial.result.lml.nats_per_token if trial.result else None
    state = element("span", trial.state.lower(), class_=f"state {trial.state.lower()}")
    return element(
        "tr",
        _number(str(trial.number), trial.number),
        _label(trial),
        element("td", state, title=trial.detail),
        _number("–" if lml is None else minus(lml, 3), lml),
        element("td", rung_words(trial)),
        _number(duration(trial.seconds) if trial.seconds else "–", trial.seconds),
    )


def _failures(found: Findings) -> Iterator[Html]:
    for reason, trials in found.failures:
        lines = (element("li", f"Trial {t.number}, {t.label}: {t.detail or 'no detail'}")
                 for t in trials)  # fmt: skip
        yield element(
            "details",
            element("summary", element("code", reason), f" · {plural(len(trials), 'trial')}"),
            element("ul", *lines),
            open="",
        )


def _method(report: ReportInput) -> Html:
    return element("ol", *(element("li", line) for line in (*METHOD, plan_words(report))))


def _replay(report: ReportInput) -> Html:
    return join(
        element("pre", element("code", "\n".join(report.commands)), tabindex=0),
        _pairs(sorted(report.versions.items())),
    )


def _footer(report: ReportInput) -> Html:
    return element(
        "footer", f"Written {report.created} · scoring plan ", element("code", report.plan_hash)
    )
