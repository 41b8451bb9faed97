"""The only values that cross a process boundary, plain JSON: a trial, its events, its result."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from mptune.errors import FaultReason
from mptune.spec.schema import Resources, Score, Training, affecting_results


class Message(BaseModel):
    """Frozen and strict about keys, but NaN travels (a diverged loss is worth reporting)."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Prepared(Message):
    """What preparing the data gave: the same for every trial of a study.

    Attributes:
        table: directory of the memory-mapped token table.
        table_hash: content hash of source and options.
        plan: path of the frozen scoring plan (npz).
        vocabulary_size: symbols that can be predicted.
        length: positions per sequence, D.
        heldout_sequences: held-out sequences in the plan.
        heldout_tokens: observed positions of those.
        bytes_per_token: text bytes per observed position, or None.
        description: one line about the data.
        precision: what `training.precision: auto` means on the workers.
        warnings: problems of the data that distort the score; None if not checked.
        counting: LML of a model that only counts symbols of the training data, nats per token, on
            the plan's sequences.
        last_value: of series, LML of a model that only counts which values follow the last visible
            value of the same channel, by the number of steps between.
        as_it_is: LML of the best checkpoint that trials go on from, before they do.
    """

    table: str
    table_hash: str
    plan: str
    plan_hash: str
    vocabulary_size: int
    length: int
    train_sequences: int
    heldout_sequences: int
    heldout_tokens: int
    bytes_per_token: float | None
    description: str
    precision: Literal["fp32", "bf16"] = "fp32"
    warnings: tuple[str, ...] | None = None
    counting: float | None = None
    last_value: float | None = None
    as_it_is: float | None = None

    @property
    def baselines(self) -> dict[str, float]:
        """Scores without any training here, nats per token: a trained model should be above all."""
        known = {
            "counting": self.counting,
            "last_value": self.last_value,
            "as_it_is": self.as_it_is,
        }
        return {name: score for name, score in known.items() if score is not None}

    @property
    def mean_length(self) -> float:
        """Mean number of observed positions of a held-out sequence."""
        return self.heldout_tokens / self.heldout_sequences


class PrepareRequest(Message):
    """Prepare the data once per study, and freeze the scoring plan.

    Attributes:
        data: the data section, its paths absolute.
        cache: directory that holds prepared tables by content hash.
        plan: path of the frozen plan, written if missing.
        measure_precision: find out what precision `auto` means.
        checkpoints: model sections of the checkpoints that are to be scored as they are.
    """

    data: dict[str, Any]
    score: Score
    cache: str
    plan: str
    measure_precision: bool = False
    checkpoints: tuple[dict[str, Any], ...] = ()


DeviceKind = Literal["cpu", "cuda"]


class Device(Message):
    """The device of each worker of a gang, as far as known before the gang starts.

    Attributes:
        bytes: its memory; None is not known.
        words: source of that value, e.g. the name of the GPU.
    """

    kind: DeviceKind
    bytes: float | None
    words: str

    def fits(self, size: float) -> bool:
        """Whether `size` bytes fit; True if the memory is not known."""
        return self.bytes is None or size <= self.bytes


class Forks(Message):
    """Where trainings of a stage that agree up to a point of progress share that prefix.

    Attributes:
        store: folder or URL of the checkpoints.
        at: progress of each checkpoint, rising.
    """

    store: str
    at: tuple[float, ...]


class TrialSpec(Message):
    """Everything that determines a trial: it is a pure function of this.

    Attributes:
        policy_label: the policy in the words of the report.
        size_label: the model's size in the words of the report.
        seed: initialisation, data order and masks.
        directory: the trial's directory, see paths.TrialDirectory.
        artifacts: URL of a folder for checkpoints and kept weights; default `directory`.
        forks: prefixes that it may take from other trials, or leave for them.
    """

    study: str
    number: int
    policy_label: str
    size_label: str
    seed: int
    data: dict[str, Any]
    model: dict[str, Any]
    policy: dict[str, Any]
    training: Training
    score: Score
    rungs: tuple[float, ...] = ()
    resources: Resources
    prepared: Prepared
    directory: str
    artifacts: str | None = None

    forks: Forks | None = None

    @property
    def label(self) -> str:
        """Policy and size in one line."""
        return f"{self.policy_label} · {self.size_label}"

    def course(self) -> str:
        """Hash of everything that determines the numbers up to rounding.

        The global batch does not depend on the number of workers or the size of micro-batches, so
        a trial with the same hash can resume from the checkpoint on other resources.
        """
        training = self.training.model_copy(update={"micro_batch_size": None})
        changes = {"training": training, "resources": Resources()}
        return self.model_copy(update=changes).fingerprint()

    def prefix(self, until: Mapping[str, Any]) -> str:
        """Hash of what determines a training up to a point; `until`: see `MaskPolicy.until`."""
        return self.model_copy(update={"policy": until}).fingerprint()

    def run_key(self) -> str:
        """Hash that all seeds of an arm share; it does not depend on the arm's name."""
        return self.model_copy(update={"seed": 0, "rungs": ()}).course()

    def fingerprint(self) -> str:
        """Hash of all that determines the numbers: equal hashes mean equal results."""
        names = {"study", "number", "policy_label", "size_label"}
        paths = {"directory", "prepared", "artifacts", "forks"}
        values = self.model_dump(mode="json", exclude=names | paths)
        values = affecting_results(TrialSpec, values)
        values["table_hash"] = self.prepared.table_hash
        values["plan_hash"] = self.prepared.plan_hash
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


MIN_GROUPS = 8
"""With fewer groups nothing is claimed of other groups than these: errors are of these only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One point of the MPT curve S(M); no model, because a search keeps many.

    Attributes:
        nats_per_token: mean log p of a masked position (negative).
    """

    mask_rate: float
    nats_per_token: float
    se: float


class LMLScore(Message):
    """Accumulated LML estimate on the held-out plan (higher is better; negative for discrete).

    Attributes:
        bits_per_byte: code length per byte of text; less is better.
        se_population: nats per sequence; new groups of sequences and new masks. None below
            `MIN_GROUPS` groups.
        df_population: degrees of freedom of se_per_token; None below 8 (`MIN_GROUPS`) groups.
        se_fixed: nats per sequence; this held-out set, new masks.
        se_per_token: nats per token, of a ratio of totals; for new groups of sequences, or below
            `MIN_GROUPS` groups for this held-out set.
        largest_share: of the group farthest from the mean, in the sum of squared deviations.
        groups_needed: for an interval at the skewness of the groups' scores.
        groups: groups of sequences: documents, subjects, sites, ...
        grouped_by: what a group is, or the column that says it.
        forwards: forwards of single sequences.
    """

    nats_per_sequence: float
    nats_per_token: float
    bits_per_byte: float | None
    se_population: float | None
    df_population: float | None
    se_fixed: float | None
    se_per_token: float | None
    largest_share: float
    groups_needed: int
    sequences: int
    groups: int
    grouped_by: str
    forwards: int
    effective_sample_size: float
    plan_hash: str
    curve: tuple[CurvePoint, ...] = ()

    @property
    def error(self) -> tuple[float, float]:
        """Standard error of nats_per_token, and its degrees of freedom; NaN if it is not known."""
        se = math.nan if self.se_per_token is None else self.se_per_token
        if self.df_population is not None:
            return se, self.df_population
        return se, self.forwards - self.sequences

    @property
    def scope(self) -> str:
        """What the error holds for, as words: empty for new groups of sequences."""
        if (n := self.few_groups) is None:
            return ""
        return f"on {'this 1 group' if n == 1 else f'these {n} groups'} only ({self.grouped_by})"

    @property
    def few_groups(self) -> int | None:
        """Number of groups, if that is too few to claim anything about others; else None."""
        return self.groups if self.se_population is None else None


class RateScore(Message):
    """Loss and accuracy at one mask rate: recorded beside the LML, never instead of it.

    Attributes:
        loss: nats per masked position.
        accuracy: share of masked positions predicted exactly.
    """

    rate: float
    loss: float
    loss_se: float
    accuracy: float
    accuracy_se: float


class MissingScore(Message):
    """The score with some observed values removed from what is seen and from what is scored.

    Attributes:
        fraction: of the observed values that were removed.
    """

    fraction: float
    kind: Literal["random", "block"]
    lml: LMLScore


class LearningPoint(Message):
    """One point of a learning curve: the score on the plan of the rungs, and the cost so far.

    Attributes:
        seconds: of training steps.
        se: nats per token.
    """

    progress: float
    tokens: int
    flops: float
    seconds: float
    nats_per_token: float
    se: float


class Cost(Message):
    """What a trial took.

    Attributes:
        total_s: of the attempt that finished, on its gang.
        setting_up_s: of that, before its first step.
        shared: of tokens and FLOPs, those of a prefix that another trial trained.
    """

    tokens: int
    flops: float
    steps: int
    training_s: float
    scoring_s: float
    total_s: float
    setting_up_s: float = 0.0
    shared: tuple[int, float] = (0, 0.0)
    workers: int
    parameters: int
    tokens_per_s: float


class TrialResult(Message):
    """What a finished trial found.

    Attributes:
        lml_shift: the same estimate on each domain of data.domains.
        learning: the score at each rung with what it had cost; the same plan at all.
        lml_missing: the same estimate with values removed as score.missing says.
        loss_curve: (progress, training loss in nats per masked position).
        prequential: accumulated score of unseen training batches before their updates, nats per
            token of the first epoch; None where the policy leaves out a mask count. A free signal,
            never the objective.
        rows_drawn: sequences trained on, those of several epochs more than once, of `data.source`
            and of each domain of training.mix.
        learned_policy: for a policy that adapts: an equal policy that does not.
        unkept: why its weights were not kept, though training.keep_weights asks for it.
    """

    fingerprint: str
    lml: LMLScore
    rates: tuple[RateScore, ...]
    lml_shift: dict[str, LMLScore] = Field(default_factory=dict)
    cost: Cost
    learning: tuple[LearningPoint, ...] = ()
    lml_missing: tuple[MissingScore, ...] = ()
    loss_curve: tuple[tuple[float, float], ...] = ()
    mean_mask_rate: float
    prequential: float | None = None
    rows_drawn: dict[str, int] = Field(default_factory=dict)
    learned_policy: dict[str, Any] | None = None
    unkept: str | None = None
    versions: dict[str, str]


class KpiValue(Message):
    """What the user's own function returned for one trial.

    Attributes:
        value: None: the function failed, see `error`.
        se: its standard error, if the function gave one.
        error: why there is no value, in one line.
        seconds: run time of the function.
    """

    value: float | None
    se: float | None = None
    error: str | None = None
    seconds: float | None = None


StageName = Literal["search", "confirmation", "ladder", "comparison"]

TrialState = Literal["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"]
"""Optuna's states, except that a trial that ran out of memory is FAIL (Optuna has it as PRUNED),
and a paused one PRUNED (Optuna has it as RUNNING)."""


class Trial(Message):
    """One trial of a stage as the storage has it; `(stage, number)` identifies it.

    Everything that shows or judges trials takes this value. Scores are in nats per token.

    Attributes:
        reason: why it was pruned or failed, as a key.
        detail: the same as one line of text.
        arm: name of the arm that it ran, or None.
        repeats: in a confirmation: number of the search's trial that it trains again.
        seed: of initialisation, data order and masks.
        parameters: weights of the model.
        params: what the sampler chose: dimension -> value.
        seconds: wall-clock time of the trial.
        asked: why the sampler proposed its point, see `mptune.study.records.ASKED`.
        judged: decisions of the pruner, see `mptune.study.records.JUDGED`.
        retries: times that it was run again after a fault of its machine.
        refused: no gang has the memory for it, so it was not trained.
        same_as: number of an earlier trial with the same spec, whose result this is.
        rungs: (progress, LML nats per token) at each rung that it reached.
        learning: the same with cost and standard error; the final score is not among them.
        kpi: what score.kpi returned for it.
        mask_rates: the policy over training, at equal steps of progress: 5 % quantile, mean and 95
            % quantile of the mask rate.
        spec: what its worker ran.
    """

    stage: StageName = "search"
    number: int
    state: TrialState
    reason: str | None = None
    detail: str | None = None
    arm: str | None = None
    repeats: int | None = None
    seed: int | None = None
    policy: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    policy_label: str = ""
    size_label: str = ""
    parameters: int | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    seconds: float | None = None
    asked: dict[str, Any] | None = None
    judged: tuple[dict[str, Any], ...] = ()
    retries: int = 0
    refused: bool = False
    same_as: int | None = None
    result: TrialResult | None = None
    rungs: tuple[tuple[float, float], ...] = ()
    learning: tuple[LearningPoint, ...] = ()
    kpi: KpiValue | None = None
    mask_rates: tuple[tuple[float, float, float], ...] = ()
    spec: TrialSpec | None = Field(None, exclude=True)

    @property
    def label(self) -> str:
        """Policy and size in one line."""
        return f"{self.policy_label} · {self.size_label}"

    @property
    def finished(self) -> bool:
        """Whether it has a finite score."""
        return self.state == "COMPLETE" and math.isfinite(self.nats_per_token)

    @property
    def nats_per_token(self) -> float:
        """Its LML estimate in nats per token; NaN without a result."""
        return self.result.lml.nats_per_token if self.result else math.nan

    def require_result(self) -> TrialResult:
        """The result of a finished trial.

        Raises:
            ValueError: it has none.
        """
        if self.result is None:
            raise ValueError(f"trial {self.number} has no result")
        return self.result


StopReason = Literal["pruned", "paused", "interrupted", "preempted"]
"""Preempted: a worker got SIGTERM, e.g. on a spot node that is being reclaimed."""


RETRIED: frozenset[FaultReason] = frozenset(
    {
        "worker_died",
        "node_lost",
        "connection_lost",
        "device_fault",
        "host_out_of_memory",
        "stalled",
        "damaged_checkpoint",
    }
)
"""Faults of the machine, after which the trial runs again, from its checkpoint if it has one."""


class Started(Message):
    """The trial's first step is about to run on its gang.

    Attributes:
        gang: name of the gang.
        pids: one worker process per rank.
        resumed_at: step of the checkpoint it goes on from, 0 is none.
        turnaround_s: seconds from the end of the gang's last trial to here.
    """

    type: Literal["started"] = "started"
    number: int
    gang: str
    pids: tuple[int, ...]
    total_steps: int
    parameters: int
    resumed_at: int = 0
    turnaround_s: float | None = None


class Progress(Message):
    """Training has made progress.

    Attributes:
        utilisation: model FLOPs, those of padding included, over the GPUs' peak; None where the
            peak is not known.
        gradient_norm: global, before clipping.
        loss_by_rate: (middle of a tenth of the mask rate, nats per masked position).
        checkpoint_s: seconds that checkpoints since the last report took to write; None: none was.
    """

    type: Literal["progress"] = "progress"
    number: int
    step: int
    total_steps: int
    progress: float
    loss: float
    mask_rate: float
    learning_rate: float
    tokens_per_s: float
    flops_per_s: float = 0.0
    utilisation: float | None = None
    gradient_norm: float | None = None
    loss_by_rate: tuple[tuple[float, float], ...] = ()
    checkpoint_s: float | None = None


class Rung(LearningPoint):
    """A trial reports at a rung, and waits for the decision to go on or stop."""

    type: Literal["rung"] = "rung"
    number: int
    index: int


class Scoring(Message):
    """The trial has trained and is being scored."""

    type: Literal["scoring"] = "scoring"
    number: int


class Finished(Message):
    """The trial has finished."""

    type: Literal["finished"] = "finished"
    number: int
    result: TrialResult


class Stopped(Message):
    """The trial was stopped on request, between two steps or while scoring.

    It has a checkpoint, unless it was pruned.
    """

    type: Literal["stopped"] = "stopped"
    number: int
    reason: StopReason
    step: int


class Failed(Message):
    """The trial failed.

    Attributes:
        detail: one line.
    """

    type: Literal["failed"] = "failed"
    number: int
    reason: FaultReason
    detail: str


class GangChanged(Message):
    """A gang came up or went away; `number` is the trial concerned, or -1."""

    type: Literal["gang"] = "gang"
    number: int = -1
    gang: str
    state: Literal["starting", "ready", "gone"]
    detail: str = ""


class Control(Protocol):
    """The questions of a running trial to its driver."""

    def stop_requested(self) -> StopReason | None:
        """Why the trial is to stop, or None; asked in every step and scoring batch."""

    def go_on(self, rung: Rung) -> bool:
        """Block until the driver decides about this rung; False prunes the trial."""


Event = Annotated[
    Started | Progress | Rung | Scoring | Finished | Stopped | Failed | GangChanged,
    Field(discriminator="type"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def event_from_json(text: str) -> Event:
    """Inverse of `event.model_dump_json()`."""
    return _EVENT.validate_json(text)
