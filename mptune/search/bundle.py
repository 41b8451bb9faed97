"""The evidence of a search in one zip file, with a list of SHA-256 checksums.

MANIFEST.json                  format, and the checksum of every other file
spec.yaml, resolved.yaml       as given, and with every default written out
prepared.json, plan.npz        table and hashes of the data; the frozen scoring plan
confirm-prepared.json, -plan   the same for a confirmation, if there is one
study.db                       all Optuna studies as SQLite, copied from any storage
trials/0007/, compare/0001/,   trial.json, result.json and scores.npz of every trial
confirm/0001/, ladder/0001/
report/report.json             the report, with versions, time and command
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mptune.analysis.results import Report
from mptune.errors import InputError, one_line
from mptune.paths import FOLDERS, RunDirectory, check_is_file, write_aside
from mptune.search.run import Run

FORMAT = 2
"""Raised when standard errors, probabilities or verdicts are computed by another method."""

MOST_BYTES = 10**9
"""Of one file of a bundle: a few kilobytes of a zip file can unpack to any size."""

MANIFEST = "MANIFEST.json"
OF_TRIALS = ("trial.json", "result.json", "scores.npz", "kpi.json")


def pack(found: Run, target: Path) -> int:
    """Write the bundle of a run to `target`; returns its number of files.

    Raises:
        InputError: the run has no report yet.
    """
    run = found.directory
    if not run.report_json.exists():
        raise InputError(f"{run.root} has no report yet; run `mptune report {run.root}` first")
    with tempfile.TemporaryDirectory() as folder, write_aside(target) as aside:
        database = RunDirectory(Path(folder)).database
        found.storage.copy_to(database)
        files = {**dict(_files(run)), database.name: database}
        for path in files.values():
            check_is_file(path)
        sums = {inside: _sum(path.read_bytes()) for inside, path in sorted(files.items())}
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            manifest = {"format": FORMAT, "sha256": sums}
            archive.writestr(MANIFEST, json.dumps(manifest, indent=2) + "\n")
            for inside in sums:
                archive.write(files[inside], inside)
    return len(sums)


def _files(run: RunDirectory) -> Iterator[tuple[str, Path]]:
    plans = (run.prepared, run.plan, run.confirm_prepared, run.confirm_plan)
    for path in (run.spec, run.resolved, *plans, run.report_json):
        if path.exists():
            yield path.relative_to(run.root).as_posix(), path
    for folder in FOLDERS.values():
        for name in OF_TRIALS:
            for path in (run.root / folder).glob(f"*/{name}"):
                yield path.relative_to(run.root).as_posix(), path


def unpack(bundle: Path, folder: Path) -> Run:
    """Check every file of a bundle and lay it out as a run directory.

    Raises:
        InputError: the bundle is missing or truncated, or a file in it was changed.
    """
    try:
        check_is_file(bundle)
        with zipfile.ZipFile(bundle) as archive:
            large = [
                member.filename for member in archive.filelist if member.file_size > MOST_BYTES
            ]
            if large:
                raise InputError(f"{bundle}: {large[0]} is larger than {MOST_BYTES / 1e9:g} GB")
            sums = _manifest(bundle, archive)
            for inside, expected in sums.items():
                content = archive.read(inside)
                if _sum(content) != expected:
                    raise InputError(f"{bundle}: {inside} was changed after it was packed")
                path = folder / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    except FileNotFoundError:
        raise InputError(f"{bundle}: no such file") from None
    except InputError:
        raise
    except Exception as error:  # zipfile and the manifest raise many kinds
        raise InputError(f"{bundle} is not a complete bundle: {one_line(error)}") from None
    return Run.open(folder, local=True)


def _manifest(bundle: Path, archive: zipfile.ZipFile) -> Mapping[str, str]:
    manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{bundle} has format {manifest.get('format')}, and this version reads {FORMAT}: its "
            "report was made by another method and cannot be recomputed here; use the version of "
            "mptune in its report.json"
        )
    sums: dict[str, str] = manifest["sha256"]
    outside = [name for name in sums if Path(name).is_absolute() or ".." in Path(name).parts]
    added = sorted(set(archive.namelist()) - set(sums) - {MANIFEST})
    for names, problem in ((outside, "lies outside the run"), (added, "is not in its list")):
        if names:
            raise InputError(f"{bundle}: {names[0]} {problem}")
    return sums


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def report_again(run: Run, stored: Mapping[str, Any]) -> Report:
    """The report of an unpacked run, recomputed; time, versions and commands come from `stored`.

    Args:
        stored: the `input` of the bundled report.json.
    """
    by_size = stored.get("by_size") or {}
    laws = [law for law in (by_size.get("best_rate"), by_size.get("gap")) if law]
    sizes = [e["parameters"] for law in laws for e in law["extrapolation"]]
    found = run.report("", list(dict.fromkeys(sizes)) or None)
    kept = {"created": stored["created"], "versions": stored["versions"]}
    return found.model_copy(update={**kept, "commands": tuple(stored["commands"])})


def wrong_scores(run: Run) -> Iterator[str]:
    """One line for each trial whose score is not the mean of its sequences' scores."""
    for stage in run.stages:
        for trial in run.storage.trials(stage):
            scores = run.scores(trial).get("nats_per_sequence")
            if trial.result is None or scores is None:
                continue
            stated, mean = trial.result.lml.nats_per_sequence, float(scores.mean())
            if not math.isclose(mean, stated, rel_tol=1e-9, abs_tol=1e-9):
                where = run.trial_directory(trial).root.relative_to(run.directory.root)
                yield f"{where}: nats per sequence {stated} is not the mean of its scores, {mean}"


def differences(stored: Any, found: Any, where: str = "report") -> Iterator[str]:
    """One line for each place at which two JSON values differ."""
    if isinstance(stored, Mapping) and isinstance(found, Mapping) and stored.keys() == found.keys():
        for key in stored:
            yield from differences(stored[key], found[key], f"{where}.{key}")
    elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        for number, pair in enumerate(zip(stored, found, strict=True)):
            yield from differences(*pair, f"{where}[{number}]")
    elif stored != found:
        yield f"{where}: was {str(stored)[:80]}, is {str(found)[:80]}"
