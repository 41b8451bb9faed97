"""The optimizer's parameter groups."""

from __future__ import annotations

import pytest
import torch

from mptune.spec.schema import Training, build
from mptune.training.engine import parameter_groups


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
    with pytest.raises(ValueError, match="compile does not work with zero_stage 3; use 2"):
        Training(budget_tokens=1, compile=True, zero_stage=3)
