"""The model card of kept weights: what it says, and that the hub's own reader reads it."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from mptune.paths import TrialDirectory
from mptune.training.model_card import model_card
from tests import checkpoints
from tests.training.trials import LENGTH


@pytest.fixture(scope="module")
def trained(study, alone, tmp_path_factory):
    """A trial from scratch, and what it found."""
    spec = study(tmp_path_factory.mktemp("trained"), training={"keep_weights": True})
    return spec, alone(spec)[-1].result


def test_a_model_from_scratch_has_a_card_without_a_base(trained):
    trial, result = trained
    card = ModelCard.load(TrialDirectory.of(trial.directory).weights / "README.md")
    assert card.data.to_dict() == {"library_name": "transformers", "tags": ["masked-lm", "mptune"]}
    lml, loss = result.lml, result.rates[0]
    for words in (
        "# test · tiny",
        "test: `{kind: fixed, rate: 0.3",
        f"cycle.npy: 300 + 100 rows of {LENGTH}",
        f"{24 * 32 * LENGTH:,} tokens in 24 steps, seed 3",
        f"{lml.nats_per_token:.4f} ± {lml.se_per_token:.4f} nats per token (± is one standard "
        f"error, for new groups of sequences ({lml.grouped_by}) and new masks",
        f"| Loss at 0.25 masked | {loss.loss:.4f} ± {loss.loss_se:.4f}",
        "was trained from scratch",
        "AutoModelForMaskedLM.from_pretrained(FOLDER)",
    ):
        assert words in card.text
    assert "tokenizer" not in card.text
    assert str(TrialDirectory.of(trial.directory).root.parent) not in card.text


def test_one_that_goes_on_names_its_base_and_licence(trained, tmp_path):
    trial, result = trained
    base = tmp_path / "base"
    base.mkdir()
    checkpoints.save(base)
    prepared = trial.prepared.model_copy(update={"as_it_is": -2.5})
    trial = trial.model_copy(update={"model": {"from": str(base)}, "prepared": prepared})
    few = result.lml.model_copy(update={"se_population": None, "groups": 3})
    result = result.model_copy(update={"lml": few, "lml_shift": {"old": few}})
    card = ModelCard(model_card(trial, result, base))
    assert card.data.to_dict() == {
        "base_model": "base",
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["masked-lm", "mptune"],
    }
    score = f"{few.nats_per_token:.4f} ± {few.se_per_token:.4f} nats per token"
    for words in (
        "goes on from base",
        "LML before this training | -2.5000 nats per token",
        f"{score} (± is one standard error, on these 3 groups only",
        f"LML on old | {score}",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
    ):
        assert words in card.text

    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "license": "mit"}))
    assert ModelCard(model_card(trial, result, base)).data.license == "mit"
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    assert ModelCard(model_card(trial, result, base)).data.license == "apache-2.0"


def test_a_hub_that_does_not_answer_costs_the_licence_only(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    trial, result = trained
    checkpoints.save(tmp_path)
    trial = trial.model_copy(update={"model": {"from": "team/base", "revision": "v2"}})
    card = ModelCard(model_card(trial, result, tmp_path))
    assert (card.data.base_model, card.data.license) == ("team/base", None)
