"""One rank of a gang: runs trials in turn, and replays one from its JSON file.

    python -m mptune.worker runs/x/trials/0007/trial.json

A trial is a pure function of its `TrialSpec`; on CPU, with the same number of workers, the same
spec gives the same result bit for bit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from mptune.artifacts import artifacts_of
from mptune.errors import InputError, NoResultError, one_line
from mptune.models import _memory as memory
from mptune.paths import TrialDirectory, free_port, write_aside, write_text
from mptune.spec import schema as spec
from mptune.trial import (
    Control,
    Cost,
    Device,
    DeviceKind,
    Event,
    Failed,
    Finished,
    LearningPoint,
    LMLScore,
    MissingScore,
    Prepared,
    PrepareRequest,
    Progress,
    Rung,
    Scoring,
    Started,
    Stopped,
    StopReason,
    TrialResult,
    TrialSpec,
)

if TYPE_CHECKING:
    from torch import nn

    from mptune.policies.base import MaskPolicy
    from mptune.training.feed import Inputs
    from mptune.training.loop import Loop
    from mptune.training.ranks import Ranks
    from mptune.training.schedule import Spent
    from mptune.training.scoring import HeldOut, Scorer
    from mptune.training.tensorboard import Board

VERSIONS_OF = ("mptune", "torch", "deepspeed", "transformers", "numpy")


class Worker:
    """One rank. It lives as long as its gang and runs many trials in turn.

    `join` and what follows it import torch; making a worker is cheap.
    """

    def __init__(self, rank: int, world_size: int, local_rank: int = 0) -> None:
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self._ranks: Ranks | None = None
        self._opened: _Opened | None = None

    def load(self) -> None:
        """Import what every trial needs: takes seconds, and no other rank."""
        from mptune.training import checkpoint, engine, loop, scoring  # noqa: F401

        engine.import_deepspeed()

    def join(self, master_addr: str, master_port: int) -> None:
        """Meet the other ranks; blocks until all are there."""
        from mptune.training import engine

        self._ranks = engine.join(
            self.rank, self.world_size, self.local_rank, master_addr, master_port
        )

    def prepare(self, request: PrepareRequest) -> Prepared:
        """Make the token table, and freeze the scoring plan or check the one that stands.

        Raises:
            InputError: the data is missing or broken, or the plan belongs to other data.
        """
        from mptune.lml import LMLPlan
        from mptune.training.scoring import HeldOut

        path = Path(request.plan)
        try:
            modality = spec.build("data", request.data)
            table = modality.prepare(Path(request.cache))
            plan = LMLPlan.load(path) if path.exists() else None
            heldout = HeldOut.select(table, request.score, plan)
            warnings = modality.warnings(table)
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error
        if plan is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            heldout.plan.save(path)
        prepared = _prepared(heldout, path, warnings)
        if not request.measure_precision:
            return prepared
        return prepared.model_copy(update={"precision": self._faster_precision(prepared)})

    def _faster_precision(self, prepared: Prepared) -> str:
        import torch

        from mptune.training import precision

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return precision.faster(prepared.vocabulary_size + 2, prepared.length, device)

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        """Run one trial, on all ranks at once. Rank 0 yields its events, the others none.

        A failure that all ranks know of ends `run` on all of them, and rank 0 yields `Failed`. One
        that only this rank knows of does so on rank 0 and is raised on the others; its peers may
        then wait for it in vain, and the gang is to be ended.
        """
        from mptune.training import engine

        journal = _Journal(trial, self.rank)
        try:
            for event in self._run(trial, control):
                yield from journal.note(event)
        except Exception as error:
            yield from journal.note(journal.failure(error))
        finally:
            journal.close()
            engine.reclaim()

    def device_bytes(self) -> int:
        """GPU memory that this process holds."""
        from mptune.training import engine

        return engine.device_bytes()

    def close(self) -> None:
        """Leave the gang."""
        from mptune.training import engine

        self._opened = None
        engine.leave()

    def _run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        """The trial's events on this rank."""
        began = time.monotonic()
        with ExitStack() as stack:
            inputs, loop, scorer = self._set_up(trial, stack, control)
            ready = time.monotonic()
            yield self._started(inputs, loop)
            yield from loop.run(control)
            result = None
            if loop.stopped is None:
                yield Scoring(number=trial.number)
                with loop.scoring():
                    result = self._result(trial, inputs, loop, scorer, began, ready)
            if loop.stopped is not None:
                yield _stopped(trial, loop.stopped, loop)
                return
            if trial.training.keep_weights:
                self._keep_weights(trial, loop)
            _keep_result(trial, result)
            loop.checkpoints.remove()
        if result is not None:
            yield Finished(number=trial.number, result=result)

    def _keep_weights(self, trial: TrialSpec, loop: Loop) -> None:
        """The final weights as a folder that transformers opens; whole or not at all."""
        import torch

        from mptune.training import engine

        files = TrialDirectory(Path(trial.directory))
        store, name = artifacts_of(files.root, trial.artifacts), files.weights.name
        aside = files.root / f".{name}"
        with engine.whole_weights(loop.engine):
            if self.rank == 0:
                shutil.rmtree(aside, ignore_errors=True)
                loop.engine.module.save_pretrained(str(aside))
                torch.save(loop.engine.module.state_dict(), aside / files.module.name)
                store.take(aside, name, last="config.json")

    def _set_up(
        self, trial: TrialSpec, stack: ExitStack, control: Control
    ) -> tuple[Inputs, Loop, Scorer]:
        """Everything a trial runs with; what goes wrong before the first collective is shared."""
        from mptune.training import engine
        from mptune.training.checkpoint import Checkpoints
        from mptune.training.loop import Loop
        from mptune.training.scoring import Scorer

        ranks = self._joined()
        ready, error = None, None
        try:
            ready = self._build(trial)
        except Exception as raised:
            error = raised
        ranks.raise_together(error)
        assert ready is not None
        inputs, heldout, module = ready
        files = TrialDirectory(Path(trial.directory))
        store = artifacts_of(files.root, trial.artifacts)
        checkpoints = Checkpoints(store.inside(files.checkpoint.name), trial.course(), ranks)
        found = checkpoints.find()
        universal = found is not None and found.universal
        width = inputs.family.width
        made = stack.enter_context(
            engine.engine(module, trial.training, ranks, width, universal=universal)
        )
        scorer = Scorer(made, heldout, ranks, control.stop_requested)
        return inputs, Loop(inputs, made, ranks, checkpoints, scorer.rung), scorer

    def _build(self, trial: TrialSpec) -> tuple[Inputs, HeldOut, nn.Module]:
        """What needs no other rank: data, policy, model with its initial weights.

        Raises:
            InputError: the spec or the data is wrong.
        """
        import torch

        from mptune.spec.deepspeed import configuration
        from mptune.training.feed import Inputs

        torch.set_num_threads(max(1, int(trial.resources.cpus_per_worker)))
        configuration(trial.training, self.world_size)
        heldout = self._open(trial.prepared, trial.score)
        try:
            policy, family = spec.build("policy", trial.policy), spec.build("model", trial.model)
        except ValidationError as error:
            raise InputError(str(error)) from error
        table = heldout.table
        family = family.sized(table.total_vocabulary, table.length)
        inputs = Inputs(
            number=trial.number,
            seed=trial.seed,
            training=trial.training,
            rungs=trial.rungs,
            policy=policy,
            family=family,
            train=heldout.train,
            vocabulary_size=table.vocabulary_size,
            axes=tuple(table.axes.values()),
            joins=_word_joins(policy, trial.data, table.total_vocabulary),
        )
        _check_structure(inputs)
        self._check_memory(trial)
        torch.manual_seed(trial.seed)
        module = family.build(table.total_vocabulary, table.vocabulary_size, table.length)
        family.lay_out(module, inputs.axes, table.sizes)
        return inputs, heldout, module

    def _check_memory(self, trial: TrialSpec) -> None:
        """Refuse before anything is allocated what cannot fit this rank's device.

        What is known of the devices before there is a gang has been refused by the driver.

        Raises:
            DoesNotFit: one line with the smallest gang and stage that would do.
        """
        ranks, stated_gb = self._joined(), trial.resources.memory_gb
        size = ranks.memory_bytes() if stated_gb is None else 1e9 * stated_gb
        kind: DeviceKind = "cuda" if ranks.device.type == "cuda" else "cpu"
        device = Device(kind=kind, bytes=size, words="the device")
        here = trial.resources.model_copy(update={"workers": self.world_size})
        memory.check(memory.Sizes.of(trial, kind), trial.training, here, lambda _: device)

    def _open(self, prepared: Prepared, score: spec.Score) -> HeldOut:
        """The table and the frozen plan, kept open from trial to trial."""
        from mptune.data.table import TokenTable
        from mptune.lml import LMLPlan
        from mptune.training.scoring import HeldOut

        key = (prepared, score)
        if self._opened is None or self._opened.key != key:
            try:
                plan = LMLPlan.load(prepared.plan)
                heldout = HeldOut.select(TokenTable.open(Path(prepared.table)), score, plan)
            except (ValueError, OSError) as error:
                raise InputError(f"the prepared data cannot be opened: {error}") from error
            if heldout.hash != prepared.plan_hash:
                raise InputError(f"{prepared.plan} is not the plan that this trial was made for")
            shifted = {name: heldout.shifted(name) for name in heldout.table.domains}
            missing = [heldout.without(number) for number in range(len(score.missing))]
            self._opened = _Opened(key, heldout, shifted, missing)
        return self._opened.heldout

    def _shifted(self, scorer: Scorer) -> dict[str, LMLScore]:
        """The score of each domain, by the same law; empty on other ranks than the first."""
        assert self._opened is not None
        found = {name: _lml(scorer, there) for name, there in self._opened.shifted.items()}
        return {name: lml for name, lml in found.items() if lml is not None}

    def _missing(self, trial: TrialSpec, scorer: Scorer) -> tuple[MissingScore, ...]:
        """The score with values missing; empty on other ranks than the first."""
        assert self._opened is not None
        pairs = zip(trial.score.missing, self._opened.missing, strict=True)
        found = [(gone, _lml(scorer, there)) for gone, there in pairs]
        return tuple(
            MissingScore(fraction=gone.fraction, kind=gone.kind, lml=lml)
            for gone, lml in found
            if lml is not None
        )

    def _joined(self) -> Ranks:
        if self._ranks is None:
            raise RuntimeError("the worker has not joined its gang")
        return self._ranks

    def _started(self, inputs: Inputs, loop: Loop) -> Started:
        return Started(
            number=inputs.number,
            gang="",
            pids=self._joined().gathered(os.getpid()),
            total_steps=loop.budget.expected_steps(loop.spent),
            parameters=_parameters(inputs),
            resumed_at=loop.spent.steps,
        )

    def _result(
        self,
        trial: TrialSpec,
        inputs: Inputs,
        loop: Loop,
        scorer: Scorer,
        began: float,
        ready: float,
    ) -> TrialResult | None:
        """Score the trained model; None on other ranks than the first."""
        from mptune.training.loop import learned_policy

        scoring = time.monotonic()
        scored, rates = scorer.lml(), scorer.rates()
        shifted, missing = self._shifted(scorer), self._missing(trial, scorer)
        if scored is None:
            return None
        lml, nats_per_sequence, rows = scored
        files, now, spent = TrialDirectory(Path(trial.directory)), time.monotonic(), loop.spent
        with write_aside(files.scores) as aside:
            at_rungs = np.asarray(spent.rung_scores, np.float64)
            np.savez(aside, nats_per_sequence=nats_per_sequence, rows=rows, at_rungs=at_rungs)
        return TrialResult(
            fingerprint=trial.fingerprint(),
            lml=lml,
            rates=rates,
            lml_shift=shifted,
            lml_missing=missing,
            cost=Cost(
                tokens=spent.tokens,
                flops=spent.flops,
                steps=spent.steps,
                training_s=loop.seconds,
                scoring_s=now - scoring,
                total_s=now - began,
                setting_up_s=ready - began,
                workers=self.world_size,
                parameters=_parameters(inputs),
                tokens_per_s=spent.tokens / max(loop.seconds, 1e-9),
            ),
            rungs=tuple(spent.rungs),
            learning=tuple(LearningPoint(**point) for point in spent.learning),
            loss_curve=tuple(spent.loss_curve),
            mean_mask_rate=spent.masked / max(spent.observed, 1),
            prequential=_prequential(spent, scorer),
            learned_policy=learned_policy(inputs.policy, spent.learned),
            versions=_versions(),
        )


@dataclass(frozen=True)
class _Opened:
    """What a worker keeps open from trial to trial of one study."""

    key: tuple[object, ...]
    heldout: HeldOut
    shifted: dict[str, HeldOut]
    missing: list[HeldOut]


def _stopped(trial: TrialSpec, reason: StopReason, loop: Loop) -> Stopped:
    """The event; a pruned trial does not go on from its checkpoint."""
    if reason == "pruned":
        loop.checkpoints.remove()
    return Stopped(number=trial.number, reason=reason, step=loop.spent.steps)


def _keep_result(trial: TrialSpec, result: TrialResult | None) -> None:
    """After all else that is kept: a trial whose result stands is never run again."""
    if result is not None:
        files = TrialDirectory(Path(trial.directory))
        write_text(files.result, result.model_dump_json(indent=2) + "\n")


def _lml(scorer: Scorer, heldout: HeldOut) -> LMLScore | None:
    """The same model's score elsewhere; None on other ranks than the first."""
    from mptune.training.scoring import Scorer

    scored = Scorer(scorer.engine, heldout, scorer.ranks, scorer.asked).lml()
    return None if scored is None else scored[0]


def _prequential(spent: Spent, scorer: Scorer) -> float | None:
    """In the unit of the score: a density for binned values, higher is better."""
    if not (spent.code and spent.code[1]):
        return None
    return -spent.code[0] / spent.code[1] - scorer.heldout.table.log_bin_width


class _Journal:
    """What a trial's directory keeps: its spec, its events, and why it failed."""

    def __init__(self, trial: TrialSpec, rank: int) -> None:
        self._trial, self._rank = trial, rank
        self._files = TrialDirectory(Path(trial.directory))
        self._board: Board | None = None
        if rank == 0:
            write_text(self._files.spec, trial.model_dump_json(indent=2) + "\n")

    def note(self, event: Event) -> Iterator[Event]:
        """Keep and pass on the events of rank 0; the other ranks have none."""
        if self._rank == 0:
            self._keep(event)
            if isinstance(event, Progress):
                self._draw(event)
            yield event

    def _keep(self, event: Event) -> None:
        """A failure is told even where there is no room to write it down."""
        try:
            with self._files.events.open("a", encoding="utf-8") as lines:
                lines.write(event.model_dump_json() + "\n")
        except OSError:
            if not isinstance(event, Failed):
                raise

    def close(self) -> None:
        """The trial is over."""
        if self._board is not None:
            self._board.close()

    def _draw(self, event: Progress) -> None:
        from mptune.training.tensorboard import Board

        self._board = self._board or Board(self._files.tensorboard)
        self._board.add(event)

    def failure(self, error: Exception) -> Failed:
        """The event of a failure; re-raises one that only another rank than the first knows."""
        from mptune.training.ranks import is_agreed, reason_of

        if self._rank and not is_agreed(error):
            raise error
        with suppress(OSError):
            write_text(self._files.traceback, "".join(traceback.format_exception(error)))
        return Failed(number=self._trial.number, reason=reason_of(error), detail=one_line(error))


def _prepared(heldout: HeldOut, plan: Path, warnings: tuple[str, ...]) -> Prepared:
    table = heldout.table
    return Prepared(
        table=str(table.path),
        table_hash=table.hash,
        plan=str(plan),
        plan_hash=heldout.hash,
        vocabulary_size=table.vocabulary_size,
        length=table.length,
        train_sequences=len(heldout.train.tokens),
        heldout_sequences=len(heldout.plan.kept),
        heldout_tokens=heldout.positions,
        bytes_per_token=table.bytes_per_token,
        description=table.description,
        warnings=warnings,
    )


def _word_joins(policy: MaskPolicy, data: dict[str, Any], ids: int) -> Any:
    """The modality's words, where the policy masks whole words; None if it has none."""
    if policy.structure.kind != "whole_word":
        return None
    return spec.build("data", data).word_joins(ids)


def _check_structure(inputs: Inputs) -> None:
    """Refuse a structure that the data does not fit.

    Raises:
        InputError: in one line.
    """
    words = None if inputs.joins is None else np.zeros((1, inputs.length), np.int64)
    try:
        inputs.policy.structure.units((1, inputs.length), np.random.default_rng(0), words)
    except ValueError as error:
        raise InputError(f"policy.structure: {error}") from None


def _parameters(inputs: Inputs) -> int:
    family = inputs.family
    grid = sum(inputs.axes) * family.width
    return family.parameters(inputs.vocabulary_size + 2, inputs.length) + grid


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS_OF}


class _Undisturbed:
    """Control of a replay: nobody stops or prunes it."""

    def stop_requested(self) -> StopReason | None:
        return None

    def go_on(self, rung: Rung) -> bool:
        return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a trial; 0 if it finished, 2 if its input is wrong, 3 if it failed."""
    parser = argparse.ArgumentParser(prog="python -m mptune.worker", description=__doc__)
    parser.add_argument("trial", type=Path, help="a trial.json")
    parser.add_argument("--workers", type=int, help="worker processes; default the trial's own")
    parser.add_argument("--out", type=Path, help="directory of the replay; default beside it")
    given = parser.parse_args(arguments)
    try:
        trial = _replayed(given.trial, given.workers, given.out or given.trial.parent / "replay")
        _restore(trial)
    except (OSError, ValueError, InputError) as error:
        print(f"{given.trial}: {error}", file=sys.stderr)
        return InputError.exit_code
    last = _replay(trial)
    if isinstance(last, Finished):
        print(last.result.model_dump_json())
        return 0
    wrong = isinstance(last, Failed) and last.reason == "wrong_input"
    return InputError.exit_code if wrong else NoResultError.exit_code


def _replayed(path: Path, workers: int | None, out: Path) -> TrialSpec:
    trial = TrialSpec.model_validate_json(path.read_text(encoding="utf-8"))
    workers = workers or trial.resources.workers
    resources = trial.resources.model_copy(update={"workers": workers})
    return trial.model_copy(
        update={"resources": resources, "directory": str(out.resolve()), "artifacts": None}
    )


def _restore(trial: TrialSpec) -> None:
    """Make the table and the plan again if they are gone."""
    made = trial.prepared
    if not (Path(made.table).exists() and Path(made.plan).exists()):
        cache = str(Path(made.table).parent)
        request = PrepareRequest(data=trial.data, score=trial.score, cache=cache, plan=made.plan)
        Worker(0, 1).prepare(request)


def _replay(trial: TrialSpec) -> Event | None:
    """Run the trial here, on rank 0, and in a process for each other rank."""
    workers, port = trial.resources.workers, free_port()
    spawn = multiprocessing.get_context("spawn")
    others = [
        spawn.Process(target=_run_rank, args=(trial.model_dump_json(), rank, port), daemon=True)
        for rank in range(1, workers)
    ]
    for process in others:
        process.start()
    last = _run_rank(trial.model_dump_json(), 0, port)
    for process in others:
        process.join(timeout=10)
        process.terminate()
    return last


def _run_rank(trial_json: str, rank: int, port: int) -> Event | None:
    trial = TrialSpec.model_validate_json(trial_json)
    worker = Worker(rank, trial.resources.workers, rank)
    worker.join("127.0.0.1", port)
    event = None
    for event in worker.run(trial, _Undisturbed()):
        print(_line(event), flush=True)
    worker.close()
    return event


def _line(event: Event) -> str:
    """An event on one line; the result is printed apart."""
    what = event.model_dump(exclude={"type", "number", "result"}, exclude_none=True)
    return " ".join([event.type, *(f"{key}={value}" for key, value in what.items())])
