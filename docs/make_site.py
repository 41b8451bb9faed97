"""Pages of the site that are not files of docs/: a hook of MkDocs (mkdocs.yml), run by `make site`.

README.md is the first page, and the pages of reference are what `mptune --help`, `mptune list keys`
and `mptune schema` print.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from mptune.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]
COPIED = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md"}
COPIED["benchmarks/RESULTS.md"] = "benchmarks/RESULTS.md"
"""File of the repository -> its page."""


def printed(*arguments: str) -> str:
    """What a command prints on 90 columns."""
    text = StringIO()
    with patch.dict(os.environ, COLUMNS="90"), redirect_stdout(text), suppress(SystemExit):
        main(arguments)
    return text.getvalue()


def commands() -> str:
    """The help of every command."""
    page = [f"# Commands\n\n```text\n{printed('--help')}```\n"]
    page += [f"## mptune {name}\n\n```text\n{printed(name, '--help')}```\n" for name in COMMANDS]
    return "\n".join(page)


def spec() -> str:
    """A table of keys for every section of a spec, or of a plugin that it names."""
    tables: dict[str, list[str]] = {}
    keys: dict[str, dict[str, Any]] = json.loads(printed("list", "keys", "--json"))
    for key, about in keys.items():
        name, _, plugin = key.partition(" ")
        section = f"{name.partition('.')[0]} {plugin}".strip() if "." in name else "The spec"
        default = "required" if about.get("required") else f"`{json.dumps(about.get('default'))}`"
        cells = (f"`{name}`", about["type"], default, about["description"])
        row = " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        tables.setdefault(section, []).append(f"| {row} |")
    head = "| key | type | default | meaning |\n|---|---|---|---|\n"
    text = "# Keys of a spec\n\n`mptune list keys` prints this page, and `mptune schema` the "
    text += "[JSON schema](spec.schema.json) with which editors complete keys.\n"
    return text + "".join(f"\n## {s}\n\n{head}" + "\n".join(r) + "\n" for s, r in tables.items())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    made = {page: (ROOT / file).read_text(encoding="utf-8") for file, page in COPIED.items()}
    made |= {"reference/commands.md": commands(), "reference/spec.md": spec()}
    made |= {"reference/spec.schema.json": printed("schema")}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links between files of the repository lead to their pages."""
    name = page.file.src_uri
    source = next((file for file, copy in COPIED.items() if copy == name), f"docs/{name}")

    def target(found: re.Match[str]) -> str:
        path, anchor = found[1], found[2] or ""
        file = os.path.relpath(ROOT / Path(source).parent / path, ROOT)
        to = COPIED.get(file, file.removeprefix("docs/"))
        return f"]({os.path.relpath(to, Path(name).parent)}{anchor})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", target, markdown)
