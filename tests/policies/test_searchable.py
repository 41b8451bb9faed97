"""All policies in one search space, each with parameters that exist only where it was taken."""

from __future__ import annotations

import json

import optuna

from mptune import plugins
from mptune.policies.base import MaskPolicy
from mptune.spec.schema import Sampler, Search, build
from mptune.spec.source import SpecFile
from mptune.spec.space import Space
from mptune.study.samplers import make_sampler

OPEN = {
    "corruption": {"choice": ["mask", "bert", "swap"]},
    "reduction": {"choice": ["seq_mean", "token_mean", "elbo"]},
    "structure": {"choice": [{"kind": "token"}, {"kind": "span", "longest": {"int": [2, 10]}}]},
}


def option(name: str) -> dict[str, object]:
    """The policy's first example, with everything around its law left open."""
    example = plugins.load("policies", name).examples()[0]
    return {"kind": name, **example.model_dump(mode="json", exclude_defaults=True), **OPEN}


def test_every_policy_is_searched_with_conditional_parameters(tmp_path):
    names = list(plugins.modules("policies"))
    asked = {
        "name": "all",
        "data": {"kind": "text", "source": "python-stdlib", "length": 32},
        "model": {"family": "bert"},
        "policy": {"choice": [option(name) for name in names]},
        "training": {"budget_tokens": 1e5},
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(asked))
    file = SpecFile.read(tmp_path / "spec.yaml")
    file.validate()
    opened, taken = optuna.create_study(direction="maximize"), set()
    for number in range(60):
        opened.sampler = make_sampler(Search(sampler=Sampler(startup_trials=50)), number)
        trial = opened.ask()
        policy = build("policy", Space(file).suggest(trial).tree["policy"])
        assert isinstance(policy, MaskPolicy)
        taken.add(policy.kind)
        label = trial.params["policy"]
        inner = {k.removeprefix(f"policy.{label}.") for k in trial.params if k != "policy"}
        span = {"structure.span.longest"} if policy.structure.kind == "span" else set()
        assert inner == {"corruption", "reduction", "structure"} | span
        opened.tell(number, policy.mean_rate(32))
    assert taken == set(names)
