"""DeepSpeed's configuration."""

from __future__ import annotations

import pytest
import torch

from mptune.errors import InputError
from mptune.spec import Training, build
from mptune.training.engine import configuration, parameter_groups


def test_configuration_from_the_training_section():
    training = Training(
        budget_tokens=1,
        batch_size=32,
        micro_batch_size=4,
        precision="bf16",
        zero_stage=2,
        gradient_clipping=0.5,
    )
    config = configuration(training, world_size=2)
    del config["steps_per_print"]
    assert config == {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 2},
        "bf16": {"enabled": True},
    }


def test_the_users_section_wins_key_by_key():
    section = {"zero_optimization": {"overlap_comm": False}, "bf16": {"enabled": True}, "x": [1]}
    training = Training(budget_tokens=1, zero_stage=1, deepspeed=section)
    config = configuration(training, world_size=1)
    assert config["zero_optimization"] == {"stage": 1, "overlap_comm": False}
    assert config["bf16"] == {"enabled": True}
    assert config["x"] == [1]


def test_a_batch_that_cannot_be_dealt_out():
    with pytest.raises(InputError, match="use a multiple of 3"):
        configuration(Training(budget_tokens=1, batch_size=32), world_size=3)


def groups(width_rule, width=256):
    torch.manual_seed(0)
    module = build("model", {"family": "bert", "width": width, "depth": 1}).build(13, 11, 8)
    optimizer = {"learning_rate": 1e-3, "width_rule": width_rule, "base_width": 64}
    training = Training.model_validate({"budget_tokens": 1, "optimizer": optimizer})
    made = parameter_groups(module, training, width)
    assert sum(p.numel() for g in made for p in g["params"]) == sum(
        p.numel() for p in module.parameters()
    )
    return [g.get("lr", 1e-3) for g in made]


def test_width_rules():
    assert groups("none") == [1e-3, 1e-3]
    assert groups("mup") == pytest.approx([2.5e-4, 1e-3, 1e-3])
    assert groups("inverse_sqrt") == pytest.approx([5e-4, 5e-4, 5e-4])
    assert groups("mup", width=64) == pytest.approx([1e-3, 1e-3, 1e-3])


def test_what_cannot_be_compiled_is_refused():
    with pytest.raises(ValueError, match="compile does not go with zero_stage 3; use stage 2"):
        Training(budget_tokens=1, compile=True, zero_stage=3)
