"""The contract with DeepSpeed: what `deepspeed_private` uses is still as it expects it."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mptune.training import deepspeed_private as private
from mptune.training import engine
from tests.training.syncs import Syncs

engine.import_deepspeed()

import deepspeed  # noqa: E402
from deepspeed.autotuning import autotuner  # noqa: E402
from deepspeed.checkpoint import ds_to_universal  # noqa: E402
from deepspeed.comm.torch import build_shm_op  # noqa: E402
from deepspeed.runtime.engine import DeepSpeedEngine  # noqa: E402
from deepspeed.runtime.zero import (  # noqa: E402
    parameter_offload,
    partitioned_param_coordinator,
)
from deepspeed.runtime.zero.config import ZeroStageEnum  # noqa: E402

CHANGED = f"DeepSpeed {deepspeed.__version__} has changed; adapt deepspeed_private.py: "


def test_no_collectives_are_compiled():
    assert build_shm_op() is None, f"{CHANGED}it compiles its collectives for CPUs"


def test_mlflow_can_be_hidden_from_the_autotuner(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    importlib.reload(autotuner)
    assert not autotuner.has_mlflow, f"{CHANGED}its autotuner imports MLflow in another way"


def test_gradients_can_be_averaged_after_the_backward_pass():
    source = inspect.getsource(DeepSpeedEngine)
    for use in (
        "if self.enable_backward_allreduce and not ",
        "def allreduce_gradients(self, bucket_size=",
    ):
        assert use in source, f"{CHANGED}the engine has no {use!r}"


def test_gradients_are_clipped_without_reading_the_norm():
    source = inspect.getsource(DeepSpeedEngine._take_model_step)
    assert "self.clip_fp32_gradients()" in source, f"{CHANGED}steps do not clip by a method"
    module = torch.nn.Linear(3, 2)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    made = SimpleNamespace(module=module, gradient_clipping=lambda: 0.5)
    private.clip_without_waiting(made)
    with Syncs() as syncs:
        made.clip_fp32_gradients()
    assert not syncs.places
    assert made._global_grad_norm.item() == pytest.approx(8**0.5)
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters()])
    assert norm.item() == pytest.approx(0.5)


def test_the_caches_of_zero_3_are_found():
    coordinator = partitioned_param_coordinator.PartitionedParameterCoordinator
    assert list(private.lru_caches(coordinator)), f"{CHANGED}the coordinator has no lru_cache"
    assert isinstance(parameter_offload.FWD_MODULE_STACK, list), (
        f"{CHANGED}FWD_MODULE_STACK is no list"
    )


def test_the_converter_takes_the_arguments_that_it_is_given(monkeypatch):
    command = ["ds_to_universal", "--input_folder", "in", "--output_folder", "out"]
    monkeypatch.setattr(sys, "argv", command)
    expected = set(vars(ds_to_universal.parse_arguments()))
    given = set(vars(private.universal_arguments(Path("in"), Path("out"))))
    assert given == expected, f"{CHANGED}the converter's arguments are {sorted(expected)}"


def test_the_engine_says_what_it_has_loaded():
    for name in ("load_universal_checkpoint", "zero_optimization_stage", "bfloat16_enabled"):
        assert callable(getattr(DeepSpeedEngine, name, None)), f"{CHANGED}no engine.{name}()"
    source = inspect.getsource(DeepSpeedEngine)
    assert "scale_wrt_gas=" in source, f"{CHANGED}engine.backward() has no scale_wrt_gas"


def test_step_counters_are_moved_to_the_device_of_the_parameters():
    step, parameters = torch.tensor(3.0), [torch.zeros(2, device="meta") for _ in range(2)]
    states = {parameter: {"step": step} for parameter in parameters}
    optimizer = SimpleNamespace(param_groups=[{}], state=states)
    made = SimpleNamespace(optimizer=optimizer, lr_scheduler=None)
    private.separate_groups(made, [{"lr": 0.1}])
    counters = [state["step"] for state in states.values()]
    assert all(counter.device.type == "meta" for counter in counters)
    assert counters[0] is not counters[1]


def test_the_stage_is_stored_without_a_call():
    private.store_stages_by_value()
    assert b"getattr" not in pickle.dumps(ZeroStageEnum(2), 2), CHANGED + "ZeroStageEnum"
    assert pickle.loads(pickle.dumps(ZeroStageEnum(2))) is ZeroStageEnum(2)
