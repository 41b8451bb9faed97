"""A worker without torch: a deterministic trial in milliseconds, and every way to fail.

A trial's `policy` chooses what happens, whatever its `kind`:

| key | meaning | default |
|---|---|---|
| `behaviour` | `ok`, `nan`, `wrong_input`, `crash`, `cut` (raise), `hang` (deaf), `exit` | `ok` |
| `at` | progress at which it misbehaves | 0.5 |
| `only_rank` | the rank that crashes, hangs or dies | 0 |
| `once` | misbehave on the first attempt only (remembered in the trial's directory) | false |
| `steps` | optimizer steps | 20 |
| `step_s` | seconds per step | 0 |
| `tokens_per_s` | what it tells of its speed | 1e5 |
| `rate` | mask rate; the best one is 0.4 | 0.15 |
| `schedule` | a decaying schedule is a little better | absent |
| `late` | what the score gains after half of the training, nats per token | 0 |
| `leak_mb` | memory that a rank does not give back after the trial | 0 |
| `gpu_leak_mb` | the same on a pretend GPU | 0 |

The score is a pure function of the spec: best at rate 0.4, better for larger models (`width`,
`layers`), with a seed effect that paired trials share.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mptune.errors import InputError
from mptune.paths import TrialDirectory, write_aside, write_text
from mptune.spec.schema import Resources, Score, Training
from mptune.trial import (
    Control,
    Cost,
    CurvePoint,
    Event,
    Failed,
    Finished,
    LearningPoint,
    LMLScore,
    Prepared,
    PrepareRequest,
    Progress,
    RateScore,
    Rung,
    Scoring,
    Started,
    Stopped,
    TrialResult,
    TrialSpec,
)

FAKE_WORKER = "tests.fakes:FakeWorker"

BEST_RATE = 0.4
PROGRESS_EVENTS = 5


def prepared(plan: str = "plan.npz", sequences: int = 64, length: int = 32) -> Prepared:
    """What preparing pretend data gives."""
    return Prepared(
        table="table", table_hash="table-hash", plan=plan, plan_hash="plan-hash",
        vocabulary_size=27, length=length, train_sequences=1000, heldout_sequences=sequences,
        heldout_tokens=sequences * length, bytes_per_token=None,
        description=f"{sequences} held-out sequences of {length} pretend tokens",
    )  # fmt: skip


def trial(number: int, directory: Path, **changes: Any) -> TrialSpec:
    """A trial spec; `policy` and other fields by name."""
    fields: dict[str, Any] = {
        "study": "search",
        "policy_label": f"fake {number}",
        "size_label": "tiny",
        "seed": 0,
        "data": {"kind": "fake"},
        "model": {"family": "fake", "width": 64, "layers": 2},
        "policy": {"kind": "fake"},
        "training": Training(budget_tokens=20 * 64 * 32),
        "score": Score(sequences=64),
        "resources": Resources(),
        "prepared": prepared(),
    }
    return TrialSpec(
        **{**fields, **changes}, number=number, directory=str(directory / f"{number:04d}")
    )


@dataclass(frozen=True)
class Policy:
    """The keys of `TrialSpec.policy` that the fake understands; it ignores the others."""

    behaviour: str = "ok"
    at: float = 0.5
    only_rank: int = 0
    once: bool = False
    steps: int = 20
    step_s: float = 0.0
    tokens_per_s: float = 1e5
    rate: float = 0.15
    schedule: str | None = None
    late: float = 0.0
    leak_mb: int = 0
    gpu_leak_mb: int = 0

    @classmethod
    def of(cls, trial: TrialSpec) -> Policy:
        known = {k: v for k, v in trial.policy.items() if k in cls.__dataclass_fields__}
        return cls(**known)

    @property
    def bad_step(self) -> int:
        return math.ceil(self.at * self.steps)


@dataclass
class FakeWorker:
    """The interface of `mptune.training.worker:Worker`."""

    rank: int
    world_size: int
    local_rank: int = 0
    peers: list[socket.socket] = field(default_factory=list)
    leaked: list[bytes] = field(default_factory=list)
    gpu_leaked: int = 0

    def join(self, master_addr: str, master_port: int) -> None:
        """Meet the others for real, so that a wrong address is noticed."""
        if self.rank:
            self.peers = [_connect(master_addr, master_port)]
            return
        with socket.create_server((master_addr, master_port)) as server:
            self.peers = [server.accept()[0] for _ in range(self.world_size - 1)]

    def prepare(self, request: PrepareRequest) -> Prepared:
        if request.data.get("behaviour") == "wrong_input":
            raise InputError(f"data.path: {request.data.get('path')} does not exist")
        write_text(Path(request.plan), "a pretend plan\n")
        made = prepared(plan=request.plan, sequences=request.score.sequences)
        found = "bf16" if request.measure_precision else "fp32"
        return made.model_copy(update={"precision": found})

    def run(self, trial: TrialSpec, control: Control) -> Iterator[Event]:
        policy = Policy.of(trial)
        self.leaked.append(b"x" * (policy.leak_mb * 10**6))
        self.gpu_leaked += policy.gpu_leak_mb * 10**6
        try:
            yield from _Run(trial, policy, self.rank, control).events()
        except FloatingPointError as error:
            yield Failed(number=trial.number, reason="non_finite_loss", detail=str(error))
        except MemoryError as error:
            yield Failed(number=trial.number, reason="out_of_memory", detail=str(error))
        except InputError as error:
            yield Failed(number=trial.number, reason="wrong_input", detail=str(error))

    def device_bytes(self) -> int:
        return self.gpu_leaked

    def close(self) -> None:
        for peer in self.peers:
            peer.close()


@dataclass
class _Run:
    trial: TrialSpec
    policy: Policy
    rank: int
    control: Control
    rungs: list[LearningPoint] = field(default_factory=list)

    def events(self) -> Iterator[Event]:
        number, steps = self.trial.number, self.policy.steps
        first = self._resume_step()
        yield self._started(first)
        waiting = list(enumerate(self.trial.rungs))
        while waiting and first / steps >= waiting[0][1]:
            self._rung(*waiting.pop(0))  # the checkpoint is of after it: it is not told again
        for step in range(first, steps):
            if reason := self.control.stop_requested():
                self._checkpoint(step)
                yield Stopped(number=number, reason=reason, step=step)
                return
            self._misbehave(step)
            time.sleep(self.policy.step_s)
            progress = (step + 1) / steps
            if (step + 1) % max(1, steps // PROGRESS_EVENTS) == 0:
                yield self._progress(step + 1)
            while waiting and progress >= waiting[0][1]:
                index, _ = waiting.pop(0)
                rung = self._rung(index, progress)
                yield rung
                if not self.control.go_on(rung):
                    yield Stopped(number=number, reason="pruned", step=step + 1)
                    return
        yield Scoring(number=number)
        yield Finished(number=number, result=self._result())

    def _started(self, resumed_at: int) -> Started:
        started = Started(
            number=self.trial.number, gang="", pids=(os.getpid(),), total_steps=self.policy.steps,
            parameters=parameters(self.trial), resumed_at=resumed_at,
        )  # fmt: skip
        if self.rank == 0:
            self.files.root.mkdir(parents=True, exist_ok=True)
            with self.files.events.open("a") as lines:
                lines.write(started.model_dump_json() + "\n")
        return started

    def _progress(self, step: int) -> Progress:
        progress = step / self.policy.steps
        return Progress(
            number=self.trial.number, step=step, total_steps=self.policy.steps, progress=progress,
            loss=-nats_per_token(self.trial, progress) * 0.8, mask_rate=self.policy.rate,
            learning_rate=1e-3 * (1 - progress), tokens_per_s=self.policy.tokens_per_s,
        )  # fmt: skip

    def _rung(self, index: int, progress: float) -> Rung:
        point = learning_point(self.trial, progress)
        self.rungs.append(point)
        return Rung(number=self.trial.number, index=index, **point.model_dump())

    def _misbehave(self, step: int) -> None:
        policy = self.policy
        if step != policy.bad_step or policy.behaviour == "ok" or self._already():
            return
        if policy.behaviour == "nan":
            raise FloatingPointError(f"training loss is nan at step {step}")
        if policy.behaviour == "wrong_input":
            raise InputError("policy.rate: no such rate")
        if policy.behaviour == "memory":
            raise MemoryError(f"no memory at step {step}")
        if self.rank == policy.only_rank:
            _fault(policy.behaviour, step)

    def _already(self) -> bool:
        marker = Path(self.trial.directory) / f"misbehaved-{self.rank}"
        before = marker.exists()
        write_text(marker, "")
        return self.policy.once and before

    @property
    def files(self) -> TrialDirectory:
        return TrialDirectory.of(self.trial.directory)

    def _resume_step(self) -> int:
        marker = self.files.checkpoint_marker
        return int(json.loads(marker.read_text())["tag"][4:]) if marker.exists() else 0

    def _checkpoint(self, step: int) -> None:
        if self.rank == 0:
            marker = {"tag": f"step{step:08d}", "fingerprint": self.trial.course()}
            write_text(self.files.checkpoint_marker, json.dumps(marker))

    def _result(self) -> TrialResult:
        found = result(self.trial, tuple(self.rungs))
        if self.rank == 0:
            self._write_scores()
            write_text(TrialDirectory.of(self.trial.directory).result, found.model_dump_json())
        return found

    def _write_scores(self) -> None:
        scores = sequence_scores(self.trial)
        with write_aside(TrialDirectory(Path(self.trial.directory)).scores) as aside:
            at_rungs = [sequence_scores(self.trial, point.progress) for point in self.rungs]
            np.savez(
                aside,
                nats_per_sequence=scores,
                rows=np.arange(len(scores)),
                groups=np.arange(len(scores)),
                at_rungs=at_rungs,
            )


def _fault(behaviour: str, step: int) -> None:
    if behaviour == "crash":
        raise RuntimeError(f"crashed at step {step}, as asked")
    if behaviour == "cut":
        raise ConnectionError("connection closed by peer, as asked")
    if behaviour == "exit":
        print("exits as asked", file=sys.stderr, flush=True)
        os._exit(1)
    if behaviour == "hang":
        while True:
            time.sleep(60)
    raise ValueError(f"unknown behaviour {behaviour!r}")


def _connect(address: str, port: int) -> socket.socket:
    for _ in range(200):
        try:
            return socket.create_connection((address, port))
        except ConnectionRefusedError:
            time.sleep(0.05)  # rank 0 may not listen yet
    raise ConnectionError(f"nobody listens at {address}:{port}")


def _jitter(*what: Any) -> float:
    """A number in [-1, 1) that depends on `what` only."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**63 - 1


def parameters(trial: TrialSpec) -> int:
    """About what a transformer of this width and depth has."""
    return int(12 * trial.model.get("layers", 2) * trial.model.get("width", 64) ** 2)


def nats_per_token(trial: TrialSpec, progress: float = 1.0) -> float:
    """The LML estimate per token at some progress."""
    policy = Policy.of(trial)
    size = 0.15 * math.log(parameters(trial) / 1e5)
    penalty = 2.0 * (policy.rate - BEST_RATE) ** 2 - (0.05 if policy.schedule == "decay" else 0.0)
    penalty -= policy.late if progress > 0.5 else 0.0
    seed = 0.02 * _jitter(trial.seed) + 0.004 * _jitter(trial.seed, policy.rate, policy.schedule)
    return -(2.0 + penalty - size + 1.2 * math.exp(-4 * progress) + seed)


def sequence_scores(
    trial: TrialSpec, progress: float = 1.0
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Nats per held-out sequence; sequences are as hard for every trial."""
    count, length = trial.prepared.heldout_sequences, trial.prepared.length
    hardness = np.random.default_rng(0).normal(0, 0.1, count)
    own = np.random.default_rng(trial.seed + 1).normal(0, 0.02, count)
    effects = (hardness - hardness.mean()) + (own - own.mean())
    return length * (nats_per_token(trial, progress) + effects)


def cost_of(trial: TrialSpec, progress: float = 1.0) -> tuple[int, float, float]:
    """Tokens, FLOPs and seconds up to there; higher mask rates cost more."""
    policy = Policy.of(trial)
    steps = math.ceil(progress * policy.steps)
    tokens = steps * trial.training.batch_size * trial.prepared.length
    flops = (6.0 + policy.rate) * parameters(trial) * tokens
    return tokens, flops, steps * max(policy.step_s, 1e-3)


def learning_point(trial: TrialSpec, progress: float) -> LearningPoint:
    """What the fake tells at a rung."""
    tokens, flops, seconds = cost_of(trial, progress)
    return LearningPoint(
        progress=progress, tokens=tokens, flops=flops, seconds=seconds,
        nats_per_token=nats_per_token(trial, progress), se=0.01,
    )  # fmt: skip


def result(trial: TrialSpec, learning: tuple[LearningPoint, ...] = ()) -> TrialResult:
    """What the fake finds for this trial."""
    scores, length = sequence_scores(trial), trial.prepared.length
    policy, n = Policy.of(trial), len(scores)
    value = nats_per_token(trial)
    rates = tuple(round(0.1 * k, 1) for k in range(1, 10))
    tokens, flops, seconds = cost_of(trial)
    return TrialResult(
        fingerprint=trial.fingerprint(),
        lml=LMLScore(
            nats_per_sequence=value * length, nats_per_token=value, bits_per_byte=None,
            se_population=float(scores.std(ddof=1) / math.sqrt(n)), se_fixed=0.05 * length / n,
            se_per_token=float(scores.std(ddof=1) / math.sqrt(n)) / length, largest_share=0.05,
            groups_needed=20, df_population=n - 1, groups=n, grouped_by="document",
            sequences=n, forwards=n * trial.score.forwards, effective_sample_size=float(n),
            plan_hash=trial.prepared.plan_hash,
            curve=tuple(
                CurvePoint(mask_rate=r, nats_per_token=value * (0.5 + r), se=0.01) for r in rates
            ),
        ),
        rates=tuple(
            RateScore(rate=r, loss=-value * (0.5 + r), loss_se=0.01, accuracy=math.exp(value * r),
                      accuracy_se=0.005)
            for r in trial.score.rates
        ),
        cost=Cost(
            tokens=tokens, flops=flops, steps=policy.steps,
            training_s=seconds, scoring_s=0.0,
            total_s=policy.steps * policy.step_s, workers=trial.resources.workers,
            parameters=parameters(trial), tokens_per_s=1e5,
        ),
        learning=learning,
        loss_curve=tuple(
            (p, -0.8 * nats_per_token(trial, p)) for p in (0.2, 0.4, 0.6, 0.8, 1.0)
        ),
        mean_mask_rate=policy.rate,
        versions={"fake": "1"},
    )  # fmt: skip
