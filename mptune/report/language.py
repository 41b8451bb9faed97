"""The texts of the report in every language: one YAML file per language, in `lang/`.

All files have the same keys, and the same placeholders in each text. A text with a count has the
forms `one` and `other`, chosen by `n`; a language without a plural has `other` only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, TypeAlias

from mptune.errors import InputError, did_you_mean
from mptune.report import formatting

DEFAULT = "en"

FORMS = frozenset({"one", "other"})

Entry: TypeAlias = "str | Mapping[str, str]"


@dataclass(frozen=True)
class Language:
    """The texts of one language; a call returns the text of a key with its values filled in.

    Attributes:
        code: language code (BCP 47), as in `--lang` and in the page's `lang`.
        entries: key with dots -> text, or its forms by count.
        scales: powers of ten that have a name, largest first.
        units: names of second, minute, hour and day.
    """

    code: str
    entries: Mapping[str, Entry]
    scales: tuple[tuple[float, str], ...]
    units: tuple[str, str, str, str]

    def __call__(self, key: str, /, **values: Any) -> str:
        entry = self.entries[key]
        if not isinstance(entry, str):
            entry = entry["one" if values.get("n") == 1 and "one" in entry else "other"]
        return entry.format(**values)

    def optional(self, key: str, otherwise: str) -> str:
        """The text of a key, or `otherwise` if the language has no such key."""
        entry = self.entries.get(key, otherwise)
        return entry if isinstance(entry, str) else otherwise

    def count(self, value: float) -> str:
        """Three significant digits with the language's own scale, as in `1.23 M`."""
        return formatting.count(value, self.scales)

    def tick(self, value: float) -> str:
        """A count without trailing zeros, as in `1.5 M`."""
        return re.sub(r"\.?0+(?=\D|$)", "", words) if "." in (words := self.count(value)) else words

    def duration(self, seconds: float) -> str:
        """The two largest units."""
        return formatting.duration(seconds, self.units)

    def probability(self, value: float) -> str:
        """A percentage, never 0 or 100: draws of a simulation cannot show either."""
        if 0.001 <= value <= 0.999:
            return f"{100 * value:.1f} %"
        return self("number.over" if value > 0.5 else "number.under")

    def capital(self, words: str) -> str:
        """The text with a capital letter, in languages that begin sentences with one."""
        return words[:1].upper() + words[1:] if self("number.capital") == "yes" else words

    def join(self, parts: list[str]) -> str:
        """The parts as a list, `a, b, c`."""
        return self("number.comma").join(parts)

    def sentences(self, parts: list[str]) -> str:
        """The sentences as one text; empty ones are left out."""
        return self("number.space").join(part for part in parts if part)


def languages() -> list[str]:
    """Codes of the available languages."""
    folder = files("mptune.report").joinpath("lang")
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


@cache
def language(code: str = DEFAULT) -> Language:
    """The language with this code.

    Raises:
        InputError: the language is not available; the message lists those that are.
    """
    import yaml

    if code not in (known := languages()):
        hint = did_you_mean(code, known)
        raise InputError(f"--lang: {code!r} is none of {', '.join(known)}{hint}")
    text = files("mptune.report").joinpath("lang", f"{code}.yaml").read_text(encoding="utf-8")
    tree: dict[str, Any] = yaml.safe_load(text)
    number = tree["number"]
    return Language(
        code=code,
        entries=dict(_flat(tree)),
        scales=tuple((float(size), name) for size, name in number.pop("scales")),
        units=tuple(number.pop("units")),
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Entry]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and not set(value) <= FORMS:
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield f"{prefix}{key}", value
