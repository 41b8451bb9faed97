"""report.html: one file that needs nothing else, in light and dark, on a phone and on a desk.

First screen: what to train with, the verdict, how certain, what it cost, what to check. Below: the
sections, rendered block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import singledispatch
from importlib.resources import files

from mptune.analysis.results import Outcomes, Report
from mptune.report import svg
from mptune.report.blocks import Cell, Code, Details, Figures, Listing, Pairs, Section, Table, Text
from mptune.report.charts import Chart
from mptune.report.findings import Findings
from mptune.report.language import Language, language
from mptune.report.layout import lay_out
from mptune.report.markup import Html, element, join
from mptune.report.sections import Context, sections
from mptune.report.words import per_token, power

_TONES = {"better": "good", "worse": "good", "equivalent": "calm"}
"""Colour of the verdict: decided, for whichever side, or equivalent; else open."""


def page(report: Report, say: Language | None = None) -> str:
    """The whole page; no request leaves it, and every string in it is escaped."""
    context = Context(report, say or language())
    made = sections(context)
    body = element(
        "body",
        element("a", context.say("page.skip"), href="#evidence", class_="skip"),
        element(
            "main",
            _header(report, context.say),
            _hero(report, context.found, context.say),
            _cards(report, context.found, context.say),
            _contents(made, context.say),
            *(_section(section, context.say) for section in made),
            _footer(report, context.say),
        ),
        element("div", class_="tip", role="status", aria_live="polite", hidden=""),
    )
    return "<!doctype html>\n" + element(
        "html", _head(report, context.say), body, lang=context.say.code
    )


def _asset(name: str) -> Html:
    return Html(files("mptune.report").joinpath("assets", name).read_text(encoding="utf-8"))


def _head(report: Report, say: Language) -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", say("page.title", study=report.study)),
        element("style", Html(svg.palette_css()), _asset("report.css")),
        element("script", _asset("report.js")),
    )


# --- first screen ------------------------------------------------------------------------------


def _header(report: Report, say: Language) -> Html:
    return element(
        "header",
        element("p", say("page.eyebrow"), class_="eyebrow"),
        element("h1", report.study),
        element("p", report.data, class_="lead"),
    )


def _hero(report: Report, found: Findings, say: Language) -> Html:
    return element(
        "section",
        element("p", say("page.recommendation"), class_="eyebrow"),
        _headline(found, say),
        *(_paragraph(words) for words in found.recommendation),
        element("dl", *_facts(report, found, say), class_="facts"),
        class_="hero",
    )


def _headline(found: Findings, say: Language) -> Html:
    if found.choice is None:
        return element("p", found.headline, class_="headline")
    size = element("span", found.headline.removeprefix(found.choice.policy_label), class_="size")
    return element("p", found.choice.policy_label, size, class_="headline")


def _facts(report: Report, found: Findings, say: Language) -> Iterator[Html]:
    best = found.recommended
    if best is not None:
        score = per_token(*found.score)
        yield _fact(say("fact.lml"), score, say("fact.lml_unit"))
        if best.bits_per_byte is not None:
            bits = f"{best.bits_per_byte:.3f}"
            yield _fact(say("fact.code_length"), bits, say("unit.bits_per_byte"))
        yield _fact(say("fact.size"), say.count(best.parameters), say("unit.parameters"))
    ended = Outcomes.of(report)
    words = say("fact.trials_of", finished=ended.finished, all=ended.all)
    yield _fact(say("fact.trials"), words, say("fact.finished"))


def _fact(term: str, value: str, unit: str) -> Html:
    return element(
        "div",
        element("dt", term),
        element("dd", element("strong", value), " ", element("span", unit)),
    )


def _cards(report: Report, found: Findings, say: Language) -> Html:
    return element(
        "section",
        element("div", _verdict_card(found), _card(say("page.checklist"), _checklist(found, say))),
        element(
            "div",
            _certainty_card(found, say),
            _card(say("page.cost"), _pairs(cost_pairs(report, say))),
        ),
        class_="cards",
    )


def _card(title: str, *children: Html | None, class_: str = "card") -> Html:
    return element("article", element("h2", title), *children, class_=class_)


def _verdict_card(found: Findings) -> Html:
    tone = _TONES.get(found.verdict_word, "open")
    return _card(
        found.verdict_title,
        element("p", found.verdict_label, class_=f"badge {tone}"),
        *(_paragraph(words) for words in found.verdict),
        *(_paragraph(flip.words, "flip" if flip.disagree else None) for flip in found.flips),
        class_="card verdict",
    )  # fmt: skip


def _certainty_card(found: Findings, say: Language) -> Html:
    bars = [
        element(
            "li",
            element("span", name),
            element("span", say.probability(probability), class_="num"),
            element("progress", value=f"{probability:.4f}", max=1, aria_label=name),
        )
        for name, probability in found.chances
    ]
    label = element("p", say("page.chances"), class_="label") if bars else None
    listed = element("ul", *bars, class_="bars") if bars else None
    words = (_paragraph(sentence) for sentence in found.certainty)
    return _card(say("page.certainty"), *words, label, listed)


def cost_pairs(report: Report, say: Language) -> list[tuple[str, str]]:
    """What the study took: term and figure."""
    spend = report.spend
    pairs = [
        (say("cost.runs"), str(spend.trials)),
        (say("cost.tokens"), say.count(spend.tokens)),
        (say("cost.flops"), power(spend.flops)),
        (say("cost.worker"), say.duration(spend.worker_s)),
    ]
    clock = [] if spend.wall_s is None else [(say("cost.clock"), say.duration(spend.wall_s))]
    return pairs + clock


def _pairs(rows: Sequence[tuple[str, str]]) -> Html:
    cells = (
        element("div", element("dt", term), element("dd", value, class_="num"))
        for term, value in rows
    )
    return element("dl", *cells, class_="pairs")


def _checklist(found: Findings, say: Language) -> Html:
    items = (
        element(
            "li",
            element("span", "✓" if check.ok else "!", class_="mark", aria_hidden="true"),
            element("span", say("page.holds" if check.ok else "page.missing"), class_="unseen"),
            element("span", *_with_code(check.words)),
            class_="ok" if check.ok else "missing",
        )
        for check in sorted(found.checks, key=lambda check: check.ok)
    )
    return element("ul", *items, class_="checks")


def _paragraph(words: str, class_: str | None = None) -> Html:
    """No line ends between a number and its per cent sign."""
    return element("p", words.replace(" %", "\u00a0%"), class_=class_)


def _with_code(words: str) -> Iterator[Html | str]:
    """What stands between backticks is code."""
    for number, part in enumerate(words.split("`")):
        yield element("code", part) if number % 2 else part


# --- below -------------------------------------------------------------------------------------


def _contents(made: Sequence[Section], say: Language) -> Html:
    links = (element("a", section.title, href=f"#{section.name}") for section in made)
    return element("nav", *links, id="evidence", aria_label=say("page.contents"))


def _section(section: Section, say: Language) -> Html:
    blocks = (block_element(block, say) for block in section.blocks)
    return element("section", element("h2", section.title), *blocks, id=section.name)


@singledispatch
def block_element(block: object, say: Language) -> Html:
    """The element of a block."""
    raise TypeError(f"no HTML for a {type(block).__name__}")


@block_element.register
def _(block: Text, say: Language) -> Html:
    return _paragraph(block.words, "soft" if block.soft else None)


@block_element.register
def _(block: Listing, say: Language) -> Html:
    return element("ol", *(element("li", line) for line in block.lines))


@block_element.register
def _(block: Pairs, say: Language) -> Html:
    return _pairs(block.pairs)


@block_element.register
def _(block: Code, say: Language) -> Html:
    return element("pre", element("code", "\n".join(block.lines)), tabindex=0)


@block_element.register
def _(block: Details, say: Language) -> Html:
    lines = (element("li", line) for line in block.lines)
    return element("details", element("summary", block.title), element("ul", *lines), open="")


@block_element.register
def _(block: Figures, say: Language) -> Html:
    figures = [_figure(chart, say) for chart in block.charts]
    if block.choices:
        return element("div", _choices(block), *figures, class_="switch")
    beside = all(chart.short for chart in block.charts) and len(figures) > 1
    return element("div", *figures, class_="beside" if beside else None)


def _choices(block: Figures) -> Html:
    buttons = (
        element("button", name, type="button", aria_pressed="false") for name in block.choices
    )
    return element(
        "div", element("span", block.choose, class_="label"), *buttons,
        class_="choices", role="group", aria_label=block.choose,
    )  # fmt: skip


def _figure(chart: Chart, say: Language) -> Html:
    drawings = [
        element("div", svg.inline(lay_out(chart, narrow), f"{chart.title}. {chart.caption}"),
                class_=class_)
        for class_, narrow in (("wide", False), ("narrow", True))
    ]  # fmt: skip
    save = element("button", "SVG", type="button", class_="save", title=say("page.save"),
                   aria_label=f"{say('page.save')}: {chart.title}")  # fmt: skip
    return element(
        "figure",
        element("div", element("h3", chart.title), save, class_="bar"),
        *drawings,
        element("figcaption", chart.caption),
        id=f"figure-{chart.name}",
    )


@block_element.register
def _(block: Table, say: Language) -> Html:
    """A table whose rows are sorted by a click on a header."""
    head = (
        element("th", element("button", column.title, type="button", title=say("page.sort")),
                class_="num" if column.numeric else None, scope="col")
        for column in block.head
    )  # fmt: skip
    body = [
        element(
            "tr",
            *(_cell(cell, column.numeric) for cell, column in zip(row, block.head, strict=True)),
            class_="first" if number == block.first else None,
        )
        for number, row in enumerate(block.rows)
    ]
    table = element(
        "table",
        element("thead", element("tr", *head)),
        element("tbody", *body),
        class_="sortable",
    )
    scroll = element("div", table, class_="scroll", tabindex=0, role="region",
                     aria_label=block.label)  # fmt: skip
    title = element("h3", block.label, class_="label") if block.headed else None
    return element("div", title, _filter(block, say), scroll, class_="table")


def _cell(cell: Cell, numeric: bool) -> Html:
    words: Html | str = cell.words
    if cell.tone:
        words = element("span", cell.words, class_=f"tone {cell.tone}")
    tag = element("span", cell.tag, class_="arm") if cell.tag else None
    below = element("span", cell.below, class_="size") if cell.below else None
    value = cell.value
    return element(
        "td",
        cell.picture,
        words,
        " " if tag else None,
        tag,
        " " if below else None,
        below,
        class_="num" if numeric else "policy" if cell.below else None,
        title=cell.title or None,
        data_sort=None if value is None else repr(float(value)),
    )


def _filter(block: Table, say: Language) -> Html | None:
    """A field and menus that leave out rows."""
    if not block.searchable:
        return None
    menus = []
    for column in block.filters:
        words = list(dict.fromkeys(row[column].words for row in block.rows))
        options = (element("option", w, value=w) for w in words)
        every = element("option", say("page.all"), value="")
        title = block.head[column].title
        menus.append(
            element("label", title, " ", element("select", every, *options, data_column=column))
        )
    field = element("input", type="search", placeholder=say("page.search"),
                    aria_label=say("page.search"))  # fmt: skip
    template = say("page.rows", shown="{shown}", all="{all}")
    shown = element("output", class_="rows", data_words=template)
    return element("div", field, *menus, shown, class_="filter")


def _footer(report: Report, say: Language) -> Html:
    written = say("page.written", created=report.created)
    return element("footer", join(written, " "), element("code", report.plan_hash))
