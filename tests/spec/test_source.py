"""Specs: every mistake gets one line that says where, which key, which value, which rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from mptune.errors import InputError
from mptune.spec.source import Choice, Range, SpecFile, merge_arm
from mptune.spec.space import Space

GOOD = """\
name: demo
data:
  kind: text
  source: python-stdlib
model:
  family: bert
  width: {choice: [32, 64]}
  depth: 2
policy:
  choice:
    - {kind: fixed, rate: {choice: [0.15, 0.3]}}
    - {kind: uniform}
    - {kind: beta, a: {float: [1.0, 4.0]}, b: 2.0}
training:
  budget_tokens: 1e6
  optimizer: {learning_rate: {float: [1e-4, 1e-2], log: true}}
search:
  trials: 4
  arms:
    fixed 15 %: {policy: {kind: fixed, rate: 0.15}}
"""


def read(tmp_path: Path, text: str, *overrides: str) -> SpecFile:
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return SpecFile.read(path, overrides)


def test_a_good_spec_validates_with_its_dimensions(tmp_path: Path) -> None:
    file = read(tmp_path, GOOD)
    spec = file.validate()
    assert spec.training.budget_tokens == 1e6
    assert set(file.dimensions) == {
        "model.width", "policy", "policy.fixed.rate", "policy.beta.a",
        "training.optimizer.learning_rate",
    }  # fmt: skip
    assert file.dimensions["policy"] == Choice(
        file.dimensions["policy"].options,
        ("fixed", "uniform", "beta"),  # type: ignore[union-attr]
    )
    assert file.dimensions["training.optimizer.learning_rate"] == Range(1e-4, 1e-2, log=True)


def test_probes_take_every_option_and_both_ends(tmp_path: Path) -> None:
    trees = [p.tree for p in read(tmp_path, GOOD).probes()]
    assert {t["model"]["width"] for t in trees} == {32, 64}
    assert {t["policy"]["kind"] for t in trees} == {"fixed", "uniform", "beta"}
    assert {t["policy"].get("rate") for t in trees} == {0.15, 0.3, None}
    assert {t["policy"].get("a") for t in trees} == {1.0, 4.0, None}
    assert {t["training"]["optimizer"]["learning_rate"] for t in trees} == {1e-4, 1e-2}


def check_all(tmp_path: Path, text: str) -> None:
    file = read(tmp_path, text)
    file.validate()
    Space(file).arms()


BROKEN = [
    ("rate: {choice: [0.15, 0.3]}", "rate: 1.5",
     "spec.yaml:11: policy.rate: 1.5 is not a mask rate; a rate is a fraction in (0, 1]"),
    ("rate: {choice: [0.15, 0.3]}", "rate: {choice: [0.15, 30]}",
     "spec.yaml:11: policy.rate: 30 is not a mask rate; a rate is a fraction in (0, 1]"),
    ("kind: uniform", "kind: unifrom", "did you mean 'uniform'?"),
    ("budget_tokens", "budget_token",
     "spec.yaml:15: training.budget_token: unknown key; allowed: budget_tokens"),
    ("  budget_tokens: 1e6\n", "",
     "spec.yaml:14: training: needs exactly one of budget_tokens"),
    ("trials: 4", "trials: 0", "spec.yaml:18: search.trials: 0 must be greater than 0"),
    ("trials: 4", "trials: many", "spec.yaml:18: search.trials: 'many' must be a valid integer"),
    ("name: demo", "name: a/b", "spec.yaml:1: name: 'a/b' string should match pattern"),
    ("  depth: 2", "  depth: 2\n  depth: 3", "spec.yaml:9: depth is given twice; first at"),
    ("  trials: 4", "  trials: [4", "spec.yaml:19: not valid YAML"),
    ("{float: [1.0, 4.0]}", "{float: [4.0, 1.0]}",
     "spec.yaml:13: policy.beta.a: float must be [low, high] with low <= high, not [4.0, 1.0]"),
    ("{float: [1.0, 4.0]}", "{float: [1.0, 4.0], lag: true}", "did you mean 'log'?"),
    ("{float: [1.0, 4.0]}", "{float: [1.0, 4.0], log: yes please}",
     "spec.yaml:13: policy.beta.a.log: 'yes please' must be true or false"),
    ("search:\n", "compare: {arms: {a: {}}}\nsearch:\n",
     "spec.yaml:17: compare.arms: name at least 2 arms"),
    ("rate: {choice: [0.15, 0.3]}", "rate: {choice: 0.15}",
     "spec.yaml:11: policy.fixed.rate: choice must be a list with at least one option"),
    ("rate: {choice: [0.15, 0.3]}", "rate: {choice: []}", "must be a list with at least one"),
    ("rate: {choice: [0.15, 0.3]}", "rate: {choice: [0.15], log: true}",
     "spec.yaml:11: policy.fixed.rate.log: unknown key in a dimension; allowed: choice"),
    ("trials: 4", "trials: {choice: [4, 5]}",
     "spec.yaml:18: search.trials: must be the same for every trial of a study"),
    ("budget_tokens: 1e6", "budget_tokens: {choice: [1, 2]}",
     "training.budget_tokens: must be the same for every trial"),
    ("{kind: fixed, rate: 0.15}}", "{kind: fixed, rate: 0.2}}",
     "spec.yaml:20: search.arms.fixed 15 %: {'policy': {'kind': 'fixed', 'rate': 0.2}} is outside"),
    ("source: python-stdlib", "source: missing.txt", "missing.txt"),
    ("  source: python-stdlib",
     "  source: python-stdlib\n  domains: {heldout: {source: \"package:email/*.py\"}}",
     "data.domains.heldout: is the name of the held-out data themselves"),
    ("  family: bert\n", "", "spec.yaml:5: model: needs 'family', one of"),
    ("family: bert", "family: bret", "did you mean 'bert'?"),
    ("  depth: 2", "  depth: 2\n  batch: 7", "spec.yaml:9: model.batch: unknown key"),
    ("trials: 4", "trials: 4\n  choose_by: {held: 1}",
     "spec.yaml:19: search.choose_by.held: no such domain; data.domains and heldout are: heldout; "
     "did you mean 'heldout'?"),
    ("trials: 4", "trials: 4\n  choose_by: worst",
     "spec.yaml:19: search.choose_by: 'worst' is not heldout, worst_domain, or weights"),
    ("trials: 4", "trials: 4\n  choose_by: {heldout: -1}", "the weight of heldout is -1; give"),
    ("budget_tokens: 1e6", "budget_tokens: 1e6\n  mix: {old: 0.2}",
     "spec.yaml:16: training.mix.old: no text of old to train on: data.domains.old needs heldout"),
    ("budget_tokens: 1e6", "budget_tokens: 1e6\n  mix: {old: much}",
     "spec.yaml:16: training.mix.old: 'much' must be a valid number"),
    ("budget_tokens: 1e6", "budget_tokens: 1e6\n  context: {length: 48, until: 0.5}",
     "spec.yaml:16: training.context.length: data.length 128 is not a multiple of 48"),
    ("trials: 4", "trials: 4\n  choose_by: {heldout: 0}", "needs a weight above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), BROKEN, ids=[b[1][:30] for b in BROKEN])
def test_a_broken_spec_gets_one_clear_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        check_all(tmp_path, GOOD.replace(old, new, 1))
    assert len(caught.value.problems) == 1, caught.value.problems
    assert line in caught.value.problems[0]


def test_weights_of_domains_with_text_to_train_on_may_be_searched(tmp_path: Path) -> None:
    domains = "domains: {old: {source: 'package:email/*.py', heldout: 0.1}, dim: {noise: 0.1}}"
    good = GOOD.replace("data:\n", f"data:\n  {domains}\n")
    file = read(tmp_path, good, "training.mix={old: {float: [0, 0.5]}}")
    assert file.validate().training.mix == {"old": 0}
    assert file.dimensions["training.mix.old"] == Range(0, 0.5)
    for given, line in (
        ("{old: {float: [-0.1, 0.5]}}", "mix.old: -0.1 must be greater than or equal to 0"),
        ("{old: .inf}", "mix.old: inf must be a finite number"),
        ("{old: 1, dim: 1}", "mix.dim: no text of dim to train on: data.domains.dim needs heldout"),
        ("{olds: 1}", "that is only scored; did you mean 'old'?"),
    ):
        with pytest.raises(InputError) as caught:
            read(tmp_path, good, f"training.mix={given}").validate()
        assert len(caught.value.problems) == 1, caught.value.problems
        assert line in caught.value.problems[0]


def test_problems_of_all_sections_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: x\ndata: {kind: text, source: /no/such}\n"
        "model: {family: bert, width: 33, heads: 2}\n"
        "policy: {kind: fixed, rate: 1.5}\ntraining: {batch_size: 0}\nserch: 1\n"
    )
    with pytest.raises(InputError) as caught:
        SpecFile.read(path).validate()
    starts = [problem.partition(" ")[0] for problem in caught.value.problems]
    assert starts == [f"spec.yaml:{line}:" for line in (5, 6, 2, 3, 4)]


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("name: x")
    with pytest.raises(InputError, match=r"no such file; did you mean 'quickstart.yaml'"):
        SpecFile.read(tmp_path / "quikstart.yaml")


def test_overrides_use_the_same_words(tmp_path: Path) -> None:
    file = read(tmp_path, GOOD, "training.budget_tokens=2e6", "policy={kind: uniform}")
    assert file.validate().training.budget_tokens == 2e6
    assert "policy" not in file.dimensions


def test_a_wrong_override_names_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, GOOD, "training.budget_tokens=-1").validate()
    assert caught.value.problems == (
        "--set training.budget_tokens=-1: training.budget_tokens: -1 must be greater than 0",
    )


def test_resolved_writes_every_default_and_keeps_dimensions(tmp_path: Path) -> None:
    file = read(tmp_path, GOOD)
    resolved = file.resolved(file.validate())
    assert resolved["training"]["gradient_clipping"] == 1.0
    assert resolved["training"]["optimizer"]["learning_rate"] == {
        "float": [1e-4, 1e-2], "log": True,
    }  # fmt: skip
    assert resolved["policy"]["choice"][1]["reduction"] == "seq_mean"
    assert resolved["search"]["trials"] == 4


def test_an_arm_replaces_a_policy_whole_and_changes_other_keys(tmp_path: Path) -> None:
    base = next(read(tmp_path, GOOD).probes())
    arm = {"policy": {"kind": "uniform"}, "training": {"batch_size": 8}}
    merged = merge_arm(base, arm, "spec.yaml:99").tree
    assert merged["policy"] == {"kind": "uniform"}
    assert merged["training"]["batch_size"] == 8
    assert merged["training"]["budget_tokens"] == 1e6


def test_two_options_of_one_kind_keep_apart(tmp_path: Path) -> None:
    text = GOOD.replace("- {kind: uniform}", "- {kind: fixed, rate: 0.5}")
    file = read(tmp_path, text)
    file.validate()
    assert file.dimensions["policy"].labels == ("fixed", "fixed rate=0.5", "beta")  # type: ignore[union-attr]


def test_options_that_look_the_same_are_numbered(tmp_path: Path) -> None:
    text = GOOD.replace("- {kind: uniform}", "- {kind: uniform}\n    - {kind: uniform}")
    labels = read(tmp_path, text).dimensions["policy"].labels  # type: ignore[union-attr]
    assert labels == ("fixed", "uniform", "uniform#2", "beta")


def test_a_misspelt_section_with_a_dimension_is_unknown_not_misplaced(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, GOOD.replace("policy:", "polcy:", 1)).validate()
    assert "spec.yaml:9: polcy: unknown key" in str(caught.value)
    assert "did you mean 'policy'?" in str(caught.value)
