"""report.md: the same words and tables as the page, with the figures as files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

from mptune.analysis.results import Report
from mptune.report.blocks import Cell, Code, Details, Figures, Listing, Pairs, Section, Table, Text
from mptune.report.findings import Findings
from mptune.report.language import Language, language
from mptune.report.sections import Context, sections


def markdown(report: Report, say: Language | None = None) -> str:
    """The report as Markdown."""
    context = Context(report, say or language())
    say = context.say
    lines = [f"# {literal(report.study)}", "", literal(report.data), ""]
    lines += _first_screen(context.found, say)
    for section in sections(context):
        lines += _section(section)
    written = say("page.written", created=report.created)
    return "\n".join([*lines, literal(written) + f" {report.plan_hash}", ""])


def _first_screen(found: Findings, say: Language) -> list[str]:
    lines = [f"## {say('page.recommendation')}", "", f"**{literal(found.headline)}**", ""]
    lines += [literal(say.sentences(list(found.recommendation))), ""]
    lines += [f"## {literal(found.verdict_title)}: {literal(found.verdict_label)}", ""]
    lines += _paragraphs([*found.verdict, *(flip.words for flip in found.flips)])
    lines += [f"## {say('page.certainty')}", "", *_paragraphs(found.certainty)]
    chances = [f"- {literal(name)}: {say.probability(p)}" for name, p in found.chances]
    lines += [say("page.chances"), "", *chances, ""] if chances else []
    lines += [f"## {say('page.cost')}", "", literal(found.cost), ""]
    lines += [f"## {say('page.checklist')}", ""]
    checks = sorted(found.checks, key=lambda check: check.ok)
    lines += [f"- [{'x' if check.ok else ' '}] {literal(check.words)}" for check in checks]
    return [*lines, ""]


def _paragraphs(sentences: Sequence[str]) -> list[str]:
    return [line for sentence in sentences for line in (literal(sentence), "")]


def _section(section: Section) -> list[str]:
    lines = [f"## {literal(section.title)}", ""]
    for block in section.blocks:
        lines += [*block_lines(block), ""]
    return lines


@singledispatch
def block_lines(block: object) -> list[str]:
    """The lines of a block."""
    raise TypeError(f"no Markdown for a {type(block).__name__}")


@block_lines.register
def _(block: Text) -> list[str]:
    return [literal(block.words)]


@block_lines.register
def _(block: Figures) -> list[str]:
    lines = []
    for chart in block.charts:
        title, caption = literal(chart.title), literal(chart.caption)
        lines += [f"![{title}](figures/{chart.name}.png)", "", f"**{title}.** {caption}", ""]
    return lines[:-1]


@block_lines.register
def _(block: Table) -> list[str]:
    head = [column.title for column in block.head]
    rows = [[_cell(cell) for cell in row] for row in block.rows]
    lines = ["| " + " | ".join(literal(t) for t in head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(literal(words) for words in row) + " |" for row in rows]
    return [f"**{literal(block.label)}**", "", *lines] if block.headed else lines


def _cell(cell: Cell) -> str:
    tag = f" ({cell.tag})" if cell.tag else ""
    below = f" · {cell.below}" if cell.below else ""
    return f"{cell.words}{below}{tag}"


@block_lines.register
def _(block: Listing) -> list[str]:
    return [f"{number}. {literal(line)}" for number, line in enumerate(block.lines, start=1)]


@block_lines.register
def _(block: Pairs) -> list[str]:
    return [f"- {literal(term)}: {literal(value)}" for term, value in block.pairs]


@block_lines.register
def _(block: Code) -> list[str]:
    return ["```sh", *block.lines, "```"]


@block_lines.register
def _(block: Details) -> list[str]:
    return [f"**{literal(block.title)}**", "", *(f"- {literal(line)}" for line in block.lines)]


def literal(words: str) -> str:
    """Text that Markdown shows as it is: no HTML, no table cell ends, no emphasis."""
    for sign in "\\`*_[]<>|":
        words = words.replace(sign, "\\" + sign)
    return words.replace("\n", " ")
