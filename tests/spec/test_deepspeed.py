"""DeepSpeed's configuration, without DeepSpeed."""

from __future__ import annotations

import pytest

from mptune.errors import InputError
from mptune.spec.deepspeed import configuration, micro_batch_size
from mptune.spec.schema import Training


def training(**fields):
    return Training(budget_tokens=1, **fields)


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


def test_half_precision_without_zero_keeps_weights_in_single_precision():
    config = configuration(training(precision="bf16"), world_size=1)
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "bf16" not in config
    section = {"zero_optimization": {"stage": 1}}
    config = configuration(training(precision="bf16", deepspeed=section), world_size=1)
    assert config["bf16"] == {"enabled": True}
    assert "torch_autocast" not in config


def test_a_batch_that_cannot_be_dealt_out():
    with pytest.raises(InputError, match="use a multiple of 3"):
        configuration(Training(budget_tokens=1, batch_size=32), world_size=3)


def test_micro_batch_size():
    assert micro_batch_size(training(batch_size=8), 2) == 4
    assert micro_batch_size(training(batch_size=8, micro_batch_size=2), 2) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 9}, "batch_size 9 cannot be shared evenly by 2 workers; .* e.g. 8"),
        ({"batch_size": 1}, "batch_size 1 cannot be shared evenly by 2 workers; .* e.g. 2"),
        ({"batch_size": 8, "micro_batch_size": 8}, "micro_batch_size 8 does not divide the 4 seq"),
    ],
)
def test_a_batch_that_cannot_be_shared(fields, message):
    with pytest.raises(InputError, match=message):
        micro_batch_size(training(**fields), 2)


def test_a_section_that_is_no_mapping():
    with pytest.raises(ValueError, match="zero_optimization is 1; give its keys"):
        training(deepspeed={"zero_optimization": 1})


def test_the_users_bf16_replaces_autocast():
    config = configuration(training(precision="bf16", deepspeed={"bf16": {"enabled": True}}), 1)
    assert "torch_autocast" not in config
