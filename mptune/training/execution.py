"""What a rank executes: the preparation of a study's data, and its trials.

A trial is a pure function of its `TrialSpec`; on CPU, with the same number of workers, the same
spec gives the same result bit for bit.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mptune.artifacts import Store, store_at
from mptune.data._table import TokenTable
from mptune.data._tokenizers import save_for_transformers
from mptune.errors import InputError, input_errors, one_line
from mptune.lml.plan import LMLPlan
from mptune.models import _memory as memory
from mptune.models._conformance import BEFORE_TRAINING, conformance
from mptune.models.base import MaskedModel
from mptune.paths import TrialDirectory, write_aside, write_text
from mptune.spec.deepspeed import configuration
from mptune.spec.schema import Score, build
from mptune.training import engine
from mptune.training.checkpoint import UNIVERSAL, Checkpoints, SharedPrefixes
from mptune.training.feed import Inputs
from mptune.training.loop import Loop, learned_policy
from mptune.training.model_card import README, model_card
from mptune.training.ranks import Ranks
from mptune.training.scoring import HeldOut, Scorer
from mptune.trial import (
    Control,
    Cost,
    Device,
    DeviceKind,
    Event,
    Finished,
    LearningPoint,
    MissingScore,
    Prepared,
    PrepareRequest,
    Scoring,
    Started,
    Stopped,
    TrialResult,
    TrialSpec,
)

KNOWN = ("mptune.models.families", "mptune.models.continued")
"""Module of the models whose contract the tests check."""

MOST_FLOPS = 3e13
"""Of a checkpoint's score before any training, a few minutes of a CPU; a training step is three."""

VERSIONS_OF = ("mptune", "torch", "deepspeed", "transformers", "numpy")


def prepare(request: PrepareRequest) -> Prepared:
    """Make the token table, and freeze the scoring plan or check the existing one.

    Raises:
        InputError: the data is missing or broken, or the plan belongs to other data.
    """
    path = Path(request.plan)
    with input_errors():
        modality = build("data", request.data)
        table = modality.prepare(Path(request.cache))
        plan = LMLPlan.load(path) if path.exists() else None
        heldout = HeldOut.select(table, request.score, plan)
        warnings = modality.warnings(table)
    if plan is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        heldout.plan.save(path)
    return Prepared(
        table=str(table.path),
        table_hash=table.hash,
        plan=str(path),
        plan_hash=heldout.hash,
        vocabulary_size=table.vocabulary_size,
        length=table.length,
        train_sequences=len(table.train.tokens),
        heldout_sequences=len(heldout.plan.kept),
        heldout_tokens=heldout.positions,
        bytes_per_token=table.bytes_per_token,
        description=table.description,
        warnings=warnings,
        counting=heldout.counting(),
        last_value=heldout.last_value(),
        as_it_is=score_as_they_are(request.checkpoints, heldout),
        precision="bf16" if request.measure_precision and has_bf16() else "fp32",
    )


def score_as_they_are(models: Sequence[Mapping[str, Any]], heldout: HeldOut) -> float | None:
    """LML of the best model before any training here, nats per token; None if it takes long.

    Args:
        models: their sections.
    """
    table, scores = heldout.table, []
    sizes = table.total_vocabulary, table.vocabulary_size, table.length
    # Here is a CPU, of which nobody has asked how much memory it has.
    small = heldout.score.model_copy(update={"batch_size": 8, "target_se": None})
    forwards = int((heldout.plan.counts_Nk > 0).sum())
    for section in models:
        model = build("model", section)
        if forwards * model.flops(sizes[0], table.length, 1, table.length // 2) > 3 * MOST_FLOPS:
            return None
        module = model.build(*sizes)
        module.check_tokenizer(table)
        found = Scorer(module, replace(heldout, score=small), Ranks()).lml()
        assert found is not None, "there is one rank"
        scores.append(found[0].nats_per_token)
    return max(scores, default=None)


def has_bf16() -> bool:
    """Whether this device has instructions for bf16; without them it converts back and forth."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@dataclass(frozen=True)
class ScoringData:
    """What the trials of one study are scored on; a worker keeps it from trial to trial."""

    key: tuple[Prepared, Score]
    heldout: HeldOut
    shifted: dict[str, HeldOut]
    """By domain."""
    missing: list[HeldOut]
    """By injection of missing values."""

    @classmethod
    def of(cls, trial: TrialSpec, kept: ScoringData | None) -> ScoringData:
        """Open the table and the frozen plan; returns `kept` if it is the same study's.

        Raises:
            InputError: they cannot be opened, or are not those that the trial was made for.
        """
        prepared, score = key = trial.prepared, trial.score
        if kept is not None and kept.key == key:
            return kept
        with input_errors("the prepared data cannot be opened: "):
            plan = LMLPlan.load(prepared.plan)
            heldout = HeldOut.select(TokenTable.open(Path(prepared.table)), score, plan)
        if heldout.hash != prepared.plan_hash:
            raise InputError(f"{prepared.plan} is not the plan that this trial was made for")
        shifted = {name: heldout.shifted(name) for name in heldout.table.domains}
        missing = [heldout.without(number) for number in range(len(score.missing))]
        return cls(key, heldout, shifted, missing)


def events(trial: TrialSpec, ranks: Ranks, control: Control, data: ScoringData) -> Iterator[Event]:
    """Run the trial, on all ranks at once, and yield its events; its files are in its directory."""
    began, number = time.monotonic(), trial.number
    files = TrialDirectory(Path(trial.directory))
    store = store_at(trial.artifacts or files.root)
    # What goes wrong before the first collective must be known to all ranks.
    with ranks.failing_together():
        inputs, module = built(trial, ranks, data.heldout)
    checkpoints = Checkpoints(store.inside(files.checkpoint.name), trial.course(), ranks)
    found = checkpoints.find()
    universal = found == UNIVERSAL
    prefixes = SharedPrefixes(trial, inputs.policy, inputs.budget().steps, ranks)
    prefix = prefixes.find() if found is None else None
    width = inputs.family.width
    with engine.engine(module, trial.training, ranks, width, universal=universal) as made:
        scorer = Scorer(made, data.heldout, ranks, control.stop_requested)
        loop = Loop(inputs, made, ranks, checkpoints, scorer.rung, prefixes, prefix)
        setting_up_s = time.monotonic() - began
        yield Started(
            number=number,
            gang="",
            pids=ranks.gathered(os.getpid()),
            total_steps=loop.budget.expected_steps(loop.spent),
            parameters=inputs.parameters,
            resumed_at=loop.spent.steps,
        )
        yield from loop.run(control)
        result = None
        if loop.stopped is None:
            yield Scoring(number=number)
            with loop.scoring():
                result = score(trial, loop, scorer, data, began, setting_up_s)
        if loop.stopped is not None:
            if loop.stopped == "pruned":  # it will not go on
                checkpoints.remove()
            yield Stopped(number=number, reason=loop.stopped, step=loop.spent.steps)
            return
        unkept = None
        if trial.training.keep_weights:
            table = data.heldout.table
            unkept = keep_weights(made, ranks, trial, result, store, table, inputs.family)
        if result is not None:
            result = result.model_copy(update={"unkept": unkept})
            # The result is written last: a trial that has one is never run again.
            write_text(files.result, result.model_dump_json(indent=2) + "\n")
        checkpoints.remove()
    if result is not None:
        yield Finished(number=number, result=result)


def built(trial: TrialSpec, ranks: Ranks, heldout: HeldOut) -> tuple[Inputs, nn.Module]:
    """What needs no other rank: policy, and the model with its initial weights.

    Raises:
        InputError: the spec is wrong, or the policy does not fit the data.
        DoesNotFit: the model needs more memory than this rank's device has. What is known of the
            devices before there is a gang was refused by the driver.
    """
    torch.set_num_threads(max(1, int(trial.resources.cpus_per_worker)))
    configuration(trial.training, ranks.world_size)
    table = heldout.table
    with input_errors():
        policy, family = build("policy", trial.policy), build("model", trial.model)
    joins, words_BD = None, None
    if policy.structure.kind == "whole_word":
        joins = build("data", trial.data).word_joins(table.total_vocabulary)
        words_BD = None if joins is None else np.zeros((1, table.length), np.int64)
    inputs = Inputs(
        number=trial.number,
        seed=trial.seed,
        training=trial.training,
        rungs=trial.rungs,
        policy=policy,
        family=family.sized(table.total_vocabulary, table.length),
        train=table.train,
        mixed={name: table.mixed(name) for name in trial.training.mix},
        vocabulary_size=table.vocabulary_size,
        axes=tuple(table.axes.values()),
        joins=joins,
    )
    with input_errors("policy.structure: "):
        policy.structure.units((1, table.length), np.random.default_rng(0), words_BD)
    stated_gb = trial.resources.memory_gb
    share = min(trial.resources.gpus_per_worker or 1.0, 1.0)
    ranks.keep_to(share)
    size = ranks.memory_bytes(share) if stated_gb is None else 1e9 * stated_gb
    kind: DeviceKind = "cuda" if ranks.device.type == "cuda" else "cpu"
    device = Device(kind=kind, bytes=size, words="the device")
    memory.check(memory.Sizes.of(trial, kind), trial.training, ranks.world_size, device)
    if inputs.family.width is None and trial.training.optimizer.width_rule != "none":
        kind_of_model = inputs.family.family
        raise InputError(
            f"training.optimizer.width_rule: the width of a model.{kind_of_model} is not known"
        )
    make = partial(inputs.family.build, table.total_vocabulary, table.vocabulary_size, table.length)
    if ranks.first and type(family).__module__ not in KNOWN:
        check_module(make, inputs.family, table)
    torch.manual_seed(trial.seed)
    module: Any = make()
    inputs.family.lay_out(module, inputs.axes, table.sizes)
    if inputs.family.family == "from":
        module.check_tokenizer(table)
    saves = hasattr(getattr(module, "model", module), "save_pretrained")
    if trial.training.keep_weights and not saves:
        raise InputError(
            "training.keep_weights needs a method save_pretrained(folder) of the model, as a "
            "transformers.PreTrainedModel has"
        )
    return inputs, module


def check_module(build: Callable[[], nn.Module], family: MaskedModel, table: TokenTable) -> None:
    """Check that the module of a model that mptune does not know does what its contract says.

    Raises:
        InputError: it does not; one line names the difference.
    """
    for name, problem in conformance(build, table.vocabulary_size, table.length, BEFORE_TRAINING):
        if problem is not None:
            raise InputError(
                f"model {family.words()}: {name}: {problem}; `mptune check` tries the model alone"
            )


def score(
    trial: TrialSpec,
    loop: Loop,
    scorer: Scorer,
    data: ScoringData,
    began: float,
    setting_up_s: float,
) -> TrialResult | None:
    """Score the trained model; None on other ranks than the first.

    The trial began at `began`, by `time.monotonic`, and its training `setting_up_s` later.
    """
    scoring, inputs, spent = time.monotonic(), loop.inputs, loop.spent
    scored, rates = scorer.lml(), scorer.rates()
    shifted = {name: replace(scorer, heldout=held).lml() for name, held in data.shifted.items()}
    missing = [replace(scorer, heldout=held).lml() for held in data.missing]
    if scored is None:
        return None
    now = time.monotonic()
    of_home, nats_per_sequence, rows = scored
    with write_aside(TrialDirectory(Path(trial.directory)).scores) as aside:
        np.savez(
            aside,
            nats_per_sequence=nats_per_sequence,
            rows=rows,
            groups=data.heldout.table.heldout.groups[rows],
            at_rungs=np.asarray(spent.rung_scores, np.float64),
        )
    code = spent.code[0] / spent.code[1] if spent.code and spent.code[1] else None
    return TrialResult(
        fingerprint=trial.fingerprint(),
        lml=of_home,
        rates=rates,
        lml_shift={name: found[0] for name, found in shifted.items() if found is not None},
        lml_missing=tuple(
            MissingScore(fraction=injection.fraction, kind=injection.kind, lml=found[0])
            for injection, found in zip(trial.score.missing, missing, strict=True)
            if found is not None
        ),
        cost=Cost(
            tokens=spent.tokens,
            flops=spent.flops,
            steps=spent.steps,
            training_s=loop.seconds,
            scoring_s=now - scoring,
            total_s=now - began,
            setting_up_s=setting_up_s,
            shared=spent.shared,
            workers=loop.ranks.world_size,
            parameters=inputs.parameters,
            tokens_per_s=spent.tokens / max(loop.seconds, 1e-9),
        ),
        learning=tuple(LearningPoint(**point) for point in spent.learning),
        loss_curve=tuple(spent.loss_curve),
        mean_mask_rate=spent.masked / max(spent.observed, 1),
        # In the unit of the score: a density of binned values, higher is better.
        prequential=None if code is None else -code - data.heldout.table.log_bin_width,
        rows_drawn=inputs.sources().drawn(spent.steps),
        learned_policy=learned_policy(inputs.policy, spent.learned),
        versions=_versions(),
    )


def keep_weights(
    made: Any,
    ranks: Ranks,
    trial: TrialSpec,
    result: TrialResult | None,
    store: Store,
    table: TokenTable,
    family: MaskedModel,
) -> str | None:
    """Store the final weights, of text the tokenizer, and a model card: transformers opens it.

    It is complete or not there at all. Returns, on the first rank, why it is not there: the trial
    is trained and scored, so it does not fail.

    Args:
        result: what the trial found, on the first rank.
    """
    from mptune.models._masked import check_opens  # transformers takes seconds to import

    files = TrialDirectory(Path(trial.directory))
    name = files.weights.name
    aside = files.root / f".{name}"
    with engine.whole_weights(made), ranks.failing_together():
        if ranks.first:
            assert result is not None, "the first rank has it"
            shutil.rmtree(aside, ignore_errors=True)
            try:
                made.module.save_pretrained(str(aside))
                torch.save(made.module.state_dict(), aside / files.module.name)
                check_opens(aside, aside / files.module.name, table, family)
                if family.family != "from":  # it brings its own
                    save_for_transformers(table, aside)
                write_text(aside / README, model_card(trial, result, aside))
                store.take(aside, name, last="config.json")
            except Exception as error:  # of a plugin's code, of transformers, or of the store
                shutil.rmtree(aside, ignore_errors=True)
                return one_line(error)
    return None


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS_OF}
