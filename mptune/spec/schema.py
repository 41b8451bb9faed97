"""The schema of a search spec: the same keys in YAML, in Python and in `--set`.

Sections are frozen pydantic models that refuse unknown keys. `data`, `model` and `policy` are
plugin sections: their keys are those of the modality, model family or mask policy that they name.
`mptune.spec.source` reads a YAML file, with line numbers and search dimensions.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin
from urllib.parse import parse_qs, quote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mptune import plugins
from mptune.artifacts import check_url
from mptune.errors import InputError


def describe_fields(made: JsonSchemaValue, cls: type) -> None:
    """Describe fields in a JSON schema as the docstring of their class does under `Attributes:`."""
    about, _, attributes = (inspect.getdoc(cls) or "").partition("\n\nAttributes:\n")
    made["description"] = about
    for names, text in re.findall(r"^ {4}(\S[^:]*): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
        for name in names.split(", "):
            made.get("properties", {}).get(name, {})["description"] = " ".join(text.split())


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, numbers given as numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        made = handler(schema)
        for base in reversed(cls.__mro__):
            if base is not Section and issubclass(base, Section):
                describe_fields(handler.resolve_ref_schema(made), base)
        return made


# Marks of a field. A section's mark holds for its fields unless they have their own.
T = TypeVar("T")
Free = Annotated[T, Field(json_schema_extra={"free_on_resume": True})]
"""A resumed search may have another value."""
Operational = Annotated[
    T, Field(json_schema_extra={"free_on_resume": True, "affects_results": False})
]
"""A trial has the same result with any value, and a resumed search may have another one."""
Searchable = Annotated[T, Field(json_schema_extra={"searchable": True})]
"""The value may be a dimension of the search."""
Unsearchable = Annotated[T, Field(json_schema_extra={"searchable": False})]


def _mask_rate(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError("is not a mask rate; a rate is a fraction in (0, 1]")
    return value


MaskRate = Annotated[
    float,
    AfterValidator(_mask_rate),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
]
"""A fraction of the observed positions, in (0, 1]."""

Fraction = Annotated[float, Field(ge=0, le=1)]


def _rungs(given: tuple[float, ...]) -> tuple[float, ...]:
    if list(given) != sorted(set(given)):
        raise ValueError(f"rungs must increase: {list(given)}")
    if finer := [rung for rung in given if round(rung, 3) != rung]:
        raise ValueError(f"a rung is a whole number of thousandths, not {finer[0]:g}")
    return given


Rungs = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], AfterValidator(_rungs)]
"""Training progress at which a trial reports; Optuna's steps are thousandths of it."""


class Plugin(Section):
    """A section whose keys a plugin defines."""

    EXAMPLES: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Keys of examples, for the conformance tests and the documentation."""

    @classmethod
    def examples(cls) -> list[Self]:
        """The examples; none where one needs files of the user's."""
        return [cls.model_validate(example) for example in cls.EXAMPLES]


SIZE = re.compile(r"^([0-9.]+(?:[eE][0-9]+)?)\s*([KMBkmb]?)$")
SIZE_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}


def parameter_count(value: object) -> object:
    """`110M` as 110e6; numbers are returned as they are.

    Raises:
        ValueError: text that is not a size.
    """
    if not isinstance(value, str):
        return value
    found = SIZE.match(value)
    if found is None:
        raise ValueError("is not a size; give parameters, e.g. 110M or 1.1e8")
    return float(found[1]) * SIZE_SUFFIXES[found[2].upper()]


Size = Annotated[
    float,
    BeforeValidator(
        parameter_count,
        json_schema_input_type=float | Annotated[str, Field(pattern=SIZE.pattern)],
    ),
]
"""Parameters of a model: a number, or one with a suffix."""

Arms = dict[str, Annotated[dict[str, Any], WithJsonSchema({"type": "object", "see": "arm"})]]
"""Named changes to a spec. `see` names a definition of `mptune.spec.json_schema`."""

PLUGIN_SECTIONS = {
    "data": ("modalities", "kind"),
    "model": ("families", "family"),
    "policy": ("policies", "kind"),
    "track": ("trackers", "kind"),
}
"""Section -> (plugin group, the key that names the plugin); `track` is a list of sections."""


MODEL_KEYS = ("class", "from")
"""Keys that say what a model is, instead of `family`: a class of one's own, or a checkpoint."""


def plugin_name(key: str, values: Mapping[str, Any]) -> Any:
    """The plugin that values name by `key`, or None."""
    others = [name for name in MODEL_KEYS if key == "family" and name in values]
    return others[0] if others else values.get(key)


REFERENCE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""`package.module:attribute`."""


def build(section: str, values: Mapping[str, Any]) -> Any:
    """The plugin object that a section describes, e.g. `build("policy", {"kind": "uniform"})`.

    Raises:
        ValueError: the naming key is missing, or names no plugin.
        pydantic.ValidationError: a parameter is wrong.
    """
    group, key = PLUGIN_SECTIONS[section]
    if not isinstance(values, Mapping):
        raise ValueError(f"must be a mapping with the key {key!r}")
    name = plugin_name(key, values)
    if name is None:
        raise ValueError(f"needs {key!r}, one of {', '.join(plugins.modules(group))}")
    return plugins.load(group, str(name)).model_validate(dict(values))


class Optimizer(Section):
    """AdamW, through DeepSpeed; a `deepspeed.optimizer` section takes precedence.

    Attributes:
        learning_rate: peak learning rate.
        width_rule: scales the learning rate with the model's width: mup divides that of hidden
            matrices by width / base_width (Yang et al. 2022, arXiv 2203.03466, table 8),
            inverse_sqrt divides all by its root.
        base_width: width at which learning_rate holds unscaled.
    """

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    width_rule: Literal["none", "mup", "inverse_sqrt"] = "none"
    base_width: int = Field(64, gt=0)


class LearningRateSchedule(Section):
    """Learning rate over training progress.

    Attributes:
        warmup: fraction of the budget spent warming up.
        decay: fraction of the budget, at its end, over which the rate falls; 1: after the warm-up.
        final: final learning rate as a fraction of the peak.
    """

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Fraction = 0.05
    decay: Fraction = 1.0
    final: Fraction = 0.0


class ShortContext(Section):
    """Sequences of text are cut into short pieces at first, and are whole later.

    Attributes:
        length: positions of a piece; data.length is a multiple of it.
        until: training progress from which on sequences are whole.
    """

    length: int = Field(gt=0)
    until: Fraction


class Training(Section):
    """How every trial trains. Exactly one budget, the same for all trials of a study.

    Attributes:
        budget_tokens: positions processed (batch x D).
        budget_flops: FLOPs, head included.
        budget_seconds: seconds of training steps.
        batch_size: sequences per optimizer step, over all workers.
        micro_batch_size: sequences per worker and forward; default batch_size / workers.
        precision: auto: bf16 if the workers have instructions for it.
        compile: torch.compile the model: a slow start, then faster steps.
        gradient_clipping: global norm; 0 is off.
        zero_stage: DeepSpeed ZeRO stage.
        pack: several short sequences in a row, each attending to itself only.
        keep_weights: keep finished trials' weights, for transformers and `mptune impute`.
        checkpoint_every_s: seconds between checkpoints of a running trial.
        context: short pieces of the sequences at first: a context that is extended in training.
        mix: trains on text of domains, too: domain of data.domains that has heldout -> its weight
            in every batch, where data.source has weight 1; {old: 0.25} is a fifth of the rows.
        deepspeed: passed to DeepSpeed verbatim; overrides the other keys.
    """

    budget_tokens: Unsearchable[float | None] = Field(None, gt=0)
    budget_flops: Unsearchable[float | None] = Field(None, gt=0)
    budget_seconds: Unsearchable[float | None] = Field(None, gt=0)
    batch_size: int = Field(64, gt=0)
    micro_batch_size: int | None = Field(None, gt=0)
    optimizer: Optimizer = Optimizer()
    schedule: LearningRateSchedule = LearningRateSchedule()
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    compile: bool = False
    gradient_clipping: float = Field(1.0, ge=0)
    zero_stage: Literal[0, 1, 2, 3] = 0
    pack: bool = False
    keep_weights: Annotated[bool, Field(json_schema_extra={"affects_results": False})] = False
    checkpoint_every_s: Operational[float] = Field(60.0, gt=0)
    context: ShortContext | None = None
    mix: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    deepspeed: dict[str, Any] = Field(default_factory=dict)

    @field_validator("deepspeed")
    @classmethod
    def _sections_are_mappings(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in ("zero_optimization", "bf16", "fp16", "torch_autocast"):
            if not isinstance(given.get(name, {}), dict):
                raise ValueError(f"{name} is {given[name]!r}; give its keys, e.g. {{{name}: {{}}}}")
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Training:
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile does not work with zero_stage 3; use 2, or compile: false")
        budgets = ("budget_tokens", "budget_flops", "budget_seconds")
        given = [b for b in budgets if getattr(self, b) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(budgets)}; {len(given)} are given")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self


class Missing(Section):
    """Values of the held-out sequences that are removed: neither an input nor scored.

    Attributes:
        fraction: of each sequence's observed values.
        kind: random positions, or one stretch of consecutive ones.
    """

    fraction: float = Field(gt=0, lt=1)
    kind: Literal["random", "block"] = "random"


class Score(Section):
    """The frozen scoring plan: the same held-out sequences, counts and masks for every trial.

    Attributes:
        sequences: held-out sequences scored (at most all).
        forwards: forwards per sequence of the LML estimate.
        target_se: standard error in nats per token to reach by more forwards.
        max_forwards: cap on forwards per sequence with target_se.
        rates: mask rates at which loss and accuracy are recorded besides the LML.
        missing: score again with values missing: the same ones for every trial.
        kpi: your own measure of every finished trial, `package.module:function` (model folder ->
            number, or number and standard error); needs training.keep_weights.
        kpi_timeout_s: limit for one call of kpi.
        rung_sequences: held-out sequences scored at a rung.
        batch_size: sequences per scoring forward and worker.
    """

    sequences: int = Field(512, gt=1)
    forwards: int = Field(2, gt=0)
    target_se: float | None = Field(None, gt=0)
    max_forwards: int = Field(16, gt=0)
    rates: tuple[MaskRate, ...] = Field((0.15,), min_length=1)
    missing: tuple[Missing, ...] = ()
    kpi: Operational[str | None] = Field(None, pattern=REFERENCE)
    kpi_higher_is_better: Operational[bool] = True
    kpi_timeout_s: Operational[float] = Field(3600.0, gt=0)
    rung_sequences: int = Field(128, gt=1)
    batch_size: int = Field(128, gt=0)
    seed: int = Field(0, ge=0)


class Sampler(Section):
    """How Optuna proposes trials; every proposal is a pure function of seed and history.

    Attributes:
        kind: exposure: predicts scores from what policies of all kinds expose the model to, and
            runs the best again with other seeds; the others are Optuna's.
        startup_trials: random proposals before the model is used; with exposure the trials of its
            start: four usual policies, as far as the space has them; a search does not end by
            itself before this many trials; null: 12 with the pruner freeze_thaw, but at most two
            for each of search.trials; 8 with others.
    """

    kind: Literal["exposure", "tpe", "random", "cmaes", "gp"] = "exposure"
    startup_trials: int | None = Field(None, ge=0)


class Pruner(Section):
    """When a trial is stopped early: trials of one model size are compared at equal progress.

    Attributes:
        kind: freeze_thaw: the sampler exposure decides at every rung what runs next; predictive:
            pauses a trial that is unlikely to end near the best, within search.error; both may
            continue it later; the others are Optuna's, and stop for good; null: freeze_thaw with
            the sampler exposure, predictive with others.
        rungs: training progress at which trials report, in thousandths; null: 0.125, 0.25, 0.5 and
            0.75 with freeze_thaw, 0.5 with others.
        startup_trials: of median: finished trials of a size before any is pruned.
    """

    kind: Literal["none", "freeze_thaw", "predictive", "median", "halving", "hyperband"] | None = (
        None
    )
    rungs: Rungs | None = None
    startup_trials: int = Field(4, ge=0)


class Confirm(Section):
    """The best trials are trained again with fresh seeds and scored on a fresh plan.

    The best of many scores is partly luck; with a confirmation, the best of these is recommended.

    Attributes:
        top: trials that are confirmed, at least 2; 0 is off.
        seeds: fresh training seeds of each.
    """

    top: int = Field(0, ge=0)
    seeds: int = Field(2, gt=0)

    @model_validator(mode="after")
    def _at_least_two(self) -> Confirm:
        if self.top == 1:
            raise ValueError("top 1 leaves no choice; give 2 or more, or 0 for none")
        return self


class Search(Section):
    """What is searched, and for how long.

    Attributes:
        trials: how much is trained, in whole trainings: a trial that is paused uses only the part
            that it was trained for, any other that ends uses one.
        concurrency: trials at once; default as many as the cluster has room for.
        ordered: use results in the order of trials, so that a resume changes nothing.
        error: probability of stopping the best trial of a size, over all trials and rungs, that the
            predictive pruner may use.
        budget_seconds: no trial starts after this; divided like the next two.
        budget_worker_seconds: workers x seconds of all trials, with scoring and retries: no trial
            starts or continues that would exceed it; divided among search, confirmation and
            comparison by their numbers of runs.
        budget_gpu_hours: GPUs x hours of all trials, in the same way.
        certainty: the search ends once its recommendation is, with this probability, within 1 nat
            per sequence of the best (or within half a standard deviation of the difference between
            two seeds); needs the sampler exposure, which trains policies with several seeds; null:
            off.
        worth: the search ends once another worker-hour is expected to gain less than this, in nats
            per sequence; needs the sampler exposure.
        choose_by: recommend the trial with the best score; worst_domain: with the best score on its
            worst domain of data.domains; weights of heldout and of domains, e.g.
            {heldout: 1, old: 0.3}: with the best weighted mean of scores.
        extrapolate_to: sizes for which the report extrapolates the laws over size, e.g. [110M].
        arms: named points of the space that always run, first.
    """

    trials: Free[int] = Field(16, gt=0)
    seed: int = Field(0, ge=0)
    concurrency: Free[int | None] = Field(None, gt=0)
    ordered: bool = True
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    error: float = Field(0.05, gt=0, lt=1)
    budget_seconds: Free[float | None] = Field(None, gt=0)
    budget_worker_seconds: Free[float | None] = Field(None, gt=0)
    budget_gpu_hours: Free[float | None] = Field(None, gt=0)
    certainty: Free[float | None] = Field(0.95, gt=0.5, lt=1)
    worth: Free[float | None] = Field(None, gt=0)
    confirm: Free[Confirm] = Confirm()
    choose_by: Free[Literal["heldout", "worst_domain"] | dict[str, float]] = "heldout"
    extrapolate_to: Free[tuple[Annotated[Size, Field(ge=1e3)], ...]] = ()
    arms: Arms = Field(default_factory=dict)

    @field_validator("choose_by", mode="before")
    @classmethod
    def _is_a_rule(cls, given: object) -> object:
        if given in ("heldout", "worst_domain"):
            return given
        if not isinstance(given, Mapping):
            raise ValueError("is not heldout, worst_domain, or weights as {heldout: 1, old: 0.3}")
        for name, weight in given.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
                raise ValueError(f"the weight of {name} is {weight!r}; give a number, 0 or more")
        if not 0 < sum(given.values()) < float("inf"):
            raise ValueError("needs a weight above 0, and finite ones")
        return given

    @property
    def pruning(self) -> str:
        """Kind of the pruner; that of its sampler where the spec names none."""
        by_sampler = "freeze_thaw" if self.sampler.kind == "exposure" else "predictive"
        return self.pruner.kind or by_sampler

    @property
    def startup_trials(self) -> int:
        """Trials of the start, by the pruner where the spec does not say."""
        # At an eighth of a training each they take a quarter of all trials at most.
        usual = min(12, 2 * self.trials) if self.pruning == "freeze_thaw" else 8
        return usual if self.sampler.startup_trials is None else self.sampler.startup_trials

    @property
    def rungs(self) -> tuple[float, ...]:
        """Training progress at which trials report, by the pruner where the spec does not say."""
        if self.pruning == "none":
            return ()
        usual = (0.125, 0.25, 0.5, 0.75) if self.pruning == "freeze_thaw" else (0.5,)
        return usual if self.pruner.rungs is None else self.pruner.rungs

    @model_validator(mode="after")
    def _pruner_of_its_sampler(self) -> Search:
        if self.pruner.kind == "freeze_thaw" and self.sampler.kind != "exposure":
            raise ValueError(
                f"pruner.kind freeze_thaw needs sampler.kind exposure, not {self.sampler.kind}"
            )
        return self


class Comparison(Section):
    """Named arms over paired seeds. An arm says what it changes; `{}` is the search's best.

    Attributes:
        baseline: arm to compare the others with; default first.
        seeds: paired training seeds per arm.
        max_seeds: add seeds to undecided arms, up to this many; default: add none.
        margin: nats per sequence below which a difference does not matter.
        level: confidence level of the intervals.
        rungs: training progress at which runs are scored for their learning curves, from which
            equivalent compute is read; [] saves the forwards.
    """

    arms: Arms = Field(min_length=2)
    baseline: str | None = None
    seeds: int = Field(3, gt=1)
    max_seeds: int | None = Field(None, gt=1)
    margin: float | None = Field(None, gt=0)
    level: float = Field(0.95, gt=0.5, lt=1)
    rungs: Rungs = (0.2, 0.4, 0.6, 0.8)

    @model_validator(mode="after")
    def _baseline_is_an_arm(self) -> Comparison:
        if self.baseline is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is not one of the arms {list(self.arms)}")
        if self.max_seeds is not None and self.max_seeds < self.seeds:
            raise ValueError(f"max_seeds {self.max_seeds} is less than seeds {self.seeds}")
        return self


class GangOfSize(Section):
    """The gang for models from some size on."""

    workers: int | None = Field(None, gt=0)
    cpus_per_worker: float | None = Field(None, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0)


class Resources(Section):
    """What one trial runs on.

    Attributes:
        workers: worker processes (ranks) per trial, one per GPU.
        by_size: other gangs for models from some number of parameters on, e.g. {100M: {workers:
            4}}.
        memory_gb: memory of each worker in 1e9 bytes, its GPU's or its share of the node; default:
            read from the nodes.
        share_prefixes: arms of a comparison that agree up to a change of their policy, with the
            same seed, train that part once and go on from its checkpoint; on CPU without
            training.compile no number changes.
        trials_per_gang: a gang is replaced after this many trials.
        memory_growth_mb: a gang is replaced when a rank's memory between two trials has grown by
            this.
        gpu_memory_growth_mb: the same for the memory that a rank holds of its GPU.
        ship_code: send the driver's mptune and plugin packages to the workers of a shared Ray
            cluster; false: they have the same version installed.
        scale_up_timeout_s: on a Ray cluster with an autoscaler: request machines for waiting
            trials, and let a trial that fits nowhere wait this long for them; 0: request none.
        stall_timeout_s: a gang without progress for this long is ended; stacks are logged.
        retries: how often a trial is run again after its gang died, hung or was lost.
    """

    workers: Free[int] = Field(1, gt=0)
    cpus_per_worker: Free[float] = Field(1, gt=0)
    gpus_per_worker: Free[float] = Field(0, ge=0)
    by_size: Free[dict[str, GangOfSize]] = Field(default_factory=dict)
    memory_gb: Operational[float | None] = Field(None, gt=0)
    share_prefixes: Operational[bool] = True
    trials_per_gang: Operational[int] = Field(100, gt=0)
    memory_growth_mb: Operational[float] = Field(1000.0, gt=0)
    gpu_memory_growth_mb: Operational[float] = Field(500.0, gt=0)
    ship_code: Operational[bool] = True
    scale_up_timeout_s: Operational[float] = Field(0.0, ge=0)
    stall_timeout_s: Operational[float] = Field(600.0, gt=0)
    retries: Operational[int] = Field(2, ge=0)

    @field_validator("by_size")
    @classmethod
    def _sizes(cls, value: dict[str, GangOfSize]) -> dict[str, GangOfSize]:
        for size in value:
            try:
                parameter_count(size)
            except ValueError as error:
                raise ValueError(f"{size!r} {error}") from None
        return value

    @model_validator(mode="after")
    def _one_gpu_per_rank(self) -> Resources:
        for gang in self.gangs() if self.by_size else [self]:
            if gang.workers > 1 and 0 < gang.gpus_per_worker < 1:
                raise ValueError(
                    f"{gang.workers} workers of a {gang.gpus_per_worker:g} share of a GPU each: "
                    "ranks of a gang cannot be on one GPU (NCCL); use gpus_per_worker: 1, or "
                    "workers: 1"
                )
        return self

    def for_model(self, parameters: float) -> Resources:
        """The gang for a model with this many parameters, without `by_size`."""
        fitting = [s for s in self.by_size if _count(s) <= parameters]
        chosen = self.by_size[max(fitting, key=_count)] if fitting else GangOfSize()
        update = {**chosen.model_dump(exclude_none=True), "by_size": {}}
        return self.model_copy(update=update)

    def gangs(self) -> list[Resources]:
        """Every gang that trials may run on, that of the smallest models first."""
        sizes = sorted(self.by_size, key=_count)
        return [self.for_model(0), *(self.for_model(_count(size)) for size in sizes)]


def _count(size: str) -> float:
    count = parameter_count(size)
    assert isinstance(count, float)
    return count


def _without_password(url: str) -> str:
    # As SQLAlchemy reads it: a password may have any character but @.
    passwords = re.findall("://[^:/@]*:([^@]*)@", url)
    query = parse_qs(url.partition("?")[2])
    passwords += [word for key in ("password", "passwd") for word in query.get(key, ())]
    if any(word and not VARIABLE.fullmatch(word) for word in passwords):
        raise ValueError(
            "has a password, which the run directory would keep: write ${NAME} for an environment "
            "variable, or leave it out and set PGPASSWORD or PGPASSFILE"
        )
    return url


VARIABLE = re.compile(r"\$\{(\w+)\}")
"""A reference to an environment variable in `storage.url`."""


class Storage(Section):
    """Where the study lives.

    Attributes:
        url: an SQLAlchemy URL for Optuna, or journal:///path/of/a/file for its journal; ${NAME} is
            an environment variable; default SQLite in the run directory.
        artifacts: any fsspec URL (s3://, gs://, abfs://, file://) for checkpoints and kept weights;
            default the run directory, which all workers must then share.
        lease_timeout_s: PostgreSQL: time after which a lost driver loses the study.
        connect_timeout_s: how long a driver waits at its start for a database server that does not
            answer.
    """

    url: Annotated[str, AfterValidator(_without_password)] | None = None
    artifacts: Annotated[str, AfterValidator(check_url)] | None = None
    lease_timeout_s: float = Field(30.0, gt=0)
    connect_timeout_s: float = Field(120.0, ge=0)

    def address(self) -> str | None:
        """The URL to connect with: it has the values of environment variables.

        Raises:
            InputError: a variable is not set.
        """

        def value(found: re.Match[str]) -> str:
            if found[1] not in os.environ:
                raise InputError(f"storage.url: there is no environment variable {found[1]}")
            # Of a password every special character is quoted; a path or a host stays as it is.
            is_password = found.string[: found.start()].endswith((":", "="))
            return quote(os.environ[found[1]], safe="") if is_password else os.environ[found[1]]

        if self.url is None:
            return None
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg2://", VARIABLE.sub(value, self.url))


class SearchSpec(Section):
    """A whole spec, with a value in place of every search dimension.

    Attributes:
        track: trackers that show the search while it runs, and keep its report; see `mptune list
            trackers`.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    data: Annotated[dict[str, Any], WithJsonSchema({"type": "object", "see": "data"})]
    model: Searchable[Annotated[dict[str, Any], WithJsonSchema({"type": "object", "see": "model"})]]
    policy: Searchable[
        Annotated[dict[str, Any], WithJsonSchema({"type": "object", "see": "policy"})]
    ]
    training: Searchable[Training]
    score: Score = Score()
    search: Search = Search()
    compare: Free[Comparison | None] = None
    resources: Resources = Resources()
    storage: Free[Storage] = Storage()
    track: Operational[
        tuple[Annotated[dict[str, Any], WithJsonSchema({"type": "object", "see": "track"})], ...]
    ] = ()

    @model_validator(mode="after")
    def _kpi_has_weights(self) -> SearchSpec:
        if self.score.kpi is not None and not self.training.keep_weights:
            raise ValueError("score.kpi needs training.keep_weights: true")
        return self


def nested(annotation: Any) -> type[BaseModel] | None:
    """The section in a field's annotation (`Section`, `Section | None`), or None."""
    candidates = () if get_origin(annotation) is dict else (annotation, *get_args(annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def mark_of(field: FieldInfo, name: str) -> bool | None:
    """The field's own mark `name`, or None where its section decides."""
    extra = field.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None  # type: ignore[return-value]


def _without(
    model: type[BaseModel], values: Mapping[str, Any], mark: str, value: bool
) -> dict[str, Any]:
    """`values` less the fields, of sections inside `model` too, whose `mark` is `value`."""
    kept: dict[str, Any] = {}
    for key, given in values.items():
        field = model.model_fields.get(key)
        if field is not None and mark_of(field, mark) is value:
            continue
        section = nested(field.annotation) if field is not None else None
        if section is not None and isinstance(given, Mapping):
            given = _without(section, given, mark, value)
        kept[key] = given
    return kept


def affecting_results(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a model with sections, less the fields that change no number of a trial."""
    return _without(model, values, "affects_results", False)


def fixed_on_resume(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved spec, dimensions included, that a resumed search must repeat."""
    return _without(SearchSpec, resolved, "free_on_resume", True)


def is_searchable(path: Sequence[str]) -> bool:
    """Whether the value at these keys of a spec may be a dimension.

    Keys that are not fields (labels of options of a choice) are skipped.
    """
    model: type[BaseModel] | None = SearchSpec
    searchable = False
    for key in path:
        field = model.model_fields.get(key) if model else None
        if field is not None:
            own = mark_of(field, "searchable")
            searchable = searchable if own is None else own
            model = nested(field.annotation)
    return searchable
