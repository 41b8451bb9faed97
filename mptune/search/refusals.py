"""Which models of a spec would be refused for want of memory, where that is known."""

from __future__ import annotations

from pathlib import Path

from mptune import dispatch, study
from mptune.errors import InputError
from mptune.models import _memory as memory
from mptune.paths import RunDirectory, cache_directory
from mptune.spec.schema import SearchSpec
from mptune.spec.source import SpecFile
from mptune.tools.prepare import prepare_table
from mptune.trial import Prepared


def refusals(file: SpecFile, spec: SearchSpec, address: str | None) -> list[str]:
    """Why some models of the search cannot fit, one line each; others can.

    Known is what a worker has from the cluster at `address`, or from `resources.memory_gb`. Every
    option and both ends of every range are tried; the data are prepared, for their vocabulary.

    Raises:
        InputError: none fits, or the data are missing or broken.
        DispatchError: the cluster cannot be reached.
    """
    if address is None and spec.resources.memory_gb is None:
        return []
    factory = study.TrialFactory("", "search", RunDirectory(Path()), _prepared(file, spec), {})
    trials = [factory.make(probe, 0, 0) for probe in file.probes()]
    there = dispatch.make(spec.resources, local=address is None, address=address)
    try:
        found = [memory.refusal(trial, there.device) for trial in trials]
    finally:
        there.close()
    lines = list(dict.fromkeys(line for line in found if line is not None))
    if None not in found:
        raise InputError([f"{file.origin_of('model')}: model: {line}" for line in lines])
    return lines


def _prepared(file: SpecFile, spec: SearchSpec) -> Prepared:
    """What the need of memory depends on; nothing can be trained with it."""
    try:
        table = prepare_table(spec.data, cache_directory() / "tables", file.path.parent)
    except InputError as error:
        raise InputError(f"{file.origin_of('data')}: {error}") from None
    return Prepared(
        table=str(table.path),
        table_hash=table.hash,
        plan="",
        plan_hash="",
        vocabulary_size=table.vocabulary_size,
        length=table.length,
        train_sequences=len(table.train.tokens),
        heldout_sequences=min(spec.score.sequences, len(table.heldout.tokens)),
        heldout_tokens=0,
        bytes_per_token=table.bytes_per_token,
        description=table.description,
    )
