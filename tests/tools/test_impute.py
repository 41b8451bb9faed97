"""Imputation: a model trained for seconds fills what it can know, and says how sure it is."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch

from mptune.artifacts import Remote
from mptune.cli import main
from mptune.cli.impute import _fill_lines
from mptune.data._bins import Bins, column
from mptune.data._inspect import codec_columns
from mptune.errors import InputError
from mptune.spec.schema import build
from mptune.tools import impute
from mptune.tools.baselines import Task, last_value, seasonal
from mptune.tools.impute import replace_cells
from mptune.training.worker import Worker
from mptune.trial import Finished, PrepareRequest
from tests.objects import bucket
from tests.training import trials

HOURS = 400


def write_sensors(path, missing=0.0):
    """Two sensors that say the same thing with noise, and a third that is on or off with them."""
    rng = np.random.default_rng(0)
    lines = ["site,t,a,b,on"]
    for site in range(8):
        for t in range(HOURS // 8):
            x = rng.normal()
            cells = [f"{x:.4f}", f"{2 * x + rng.normal() / 10:.4f}", str(int(x > 0))]
            cells = ["" if rng.random() < missing else c for c in cells]
            lines.append(",".join([str(site), str(t), *cells]))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def model(tmp_path_factory, alone):
    """A finished trial with its weights."""
    folder = tmp_path_factory.mktemp("sensors")
    write_sensors(folder / "s.csv")
    data = {
        "kind": "series", "source": str(folder / "s.csv"), "channels": ["a", "b", "on"],
        "window": 2, "group": "site", "time": "t", "bins": 8, "heldout": 0.25,
        "domains": {"noisy": {"noise": 2.0}, "seven": {"where": {"site": 7}}},
    }  # fmt: skip
    request = PrepareRequest(
        data=data,
        score=trials.SCORE,
        cache=str(folder / "cache"),
        plan=str(folder / "plan.npz"),
    )
    spec = trials.trial(
        Worker(0, 1).prepare(request), data, folder / "trial",
        policy={"kind": "uniform"}, model={"family": "bert", "width": 32, "depth": 1},
        training={"keep_weights": True, "budget_tokens": 400 * 32 * 6,
                  "optimizer": {"learning_rate": 3e-3}, "schedule": {"kind": "constant"}},
    )  # fmt: skip
    finished = alone(spec)[-1]
    assert isinstance(finished, Finished)
    return folder / "trial", finished.result


def test_every_domain_is_scored_and_the_shifted_one_is_worse(model):
    result = model[1]
    assert set(result.lml_shift) == {"noisy", "seven"}
    assert result.lml_shift["noisy"].nats_per_token < result.lml.nats_per_token - 0.3
    assert result.lml_shift["seven"].nats_per_token == pytest.approx(
        result.lml.nats_per_token, abs=0.3
    )
    assert all(score.error[0] > 0 for score in result.lml_shift.values())


def test_missing_values_are_filled_and_the_rest_is_left_alone(model, tmp_path, capsys):
    write_sensors(tmp_path / "gaps.csv", missing=0.2)
    out, cells = tmp_path / "full.csv", tmp_path / "cells.csv"
    command = ["impute", str(model[0]), str(tmp_path / "gaps.csv")]
    assert main([*command, "--out", str(out), "--cells", str(cells), "--draws", "3"]) == 0
    given, full = (list(csv.DictReader(p.open())) for p in (tmp_path / "gaps.csv", out))
    missing = [(i, k) for i, row in enumerate(given) for k, v in row.items() if v == ""]
    assert all(full[i][k] == v for i, row in enumerate(given) for k, v in row.items() if v)
    assert all(full[i][k] != "" for i, k in missing)
    listed = list(csv.DictReader(cells.open()))
    assert len(listed) == len(missing)
    for row in listed:
        assert float(row["low"]) <= float(row["high"])
        assert {"draw_1", "draw_2", "draw_3"} <= set(row)
    assert "filled of" in capsys.readouterr().out


def test_a_kept_model_is_opened_without_mptune(model, tmp_path, capsys):
    """With the command; the folder has a model class of its own, as its positions are a grid."""
    for place in (model[0], model[0] / "model"):
        assert main(["check", str(place)]) == 0
        shown = capsys.readouterr().out
        assert float(re.search(r"differs by at most (\S+) nats", shown)[1]) < 1e-9
    other = tmp_path / "trial"
    shutil.copytree(model[0], other)
    state = torch.load(other / "model" / "module.pt")
    state["axes.0.weight"] *= 1.01
    torch.save(state, other / "model" / "module.pt")
    assert main(["check", str(other)]) == 2
    assert "other log-probabilities in transformers, by 0.0" in capsys.readouterr().err
    with (other / "model" / "_grid.py").open("a") as code:
        code.write("raise SystemExit('code of a stranger')\n")
    assert main(["check", str(other)]) == 2
    assert "has code that is not of this mptune" in capsys.readouterr().err
    (other / "model" / "_grid.py").unlink()
    assert main(["check", str(other)]) == 2
    assert "does not open without mptune: OSError" in capsys.readouterr().err
    shutil.rmtree(other / "model")
    assert main(["check", str(other)]) == 2
    assert "no kept weights; train with" in capsys.readouterr().err


TOWNS = ["Rome", '"Oslo, N"', '"the ""Hague"""', '"Lima"']


def poll(rows, towns):
    """Fields as people write them: quotes, spaces, both ways to write a number, missing values."""
    rng = np.random.default_rng(0)
    for n in range(rows):
        note = f'"two\nlines, ""{n}"""' if n % 3 == 0 else f" {n} "
        town, income = rng.choice(towns), f"{rng.choice([7500, 9000, 12000])}{'.0' * (n % 2)}"
        made = [town, note, income, f"{rng.integers(3)}.50", f"{rng.normal():.3f}"]
        yield [rng.choice(["", "NA"]) if c != 1 and rng.random() < 0.1 else v
               for c, v in enumerate(made)]  # fmt: skip


@pytest.fixture
def untrained(tmp_path, monkeypatch):
    """An imputer of a poll that gives every symbol the same probability."""
    lines = ["town,note,income,code,size", *map(",".join, poll(300, TOWNS))]
    (tmp_path / "poll.csv").write_text("\n".join(lines))
    columns = ["town", "income", "code", "size"]
    data = {
        "kind": "tabular", "source": "poll.csv", "columns": columns, "rare": 3, "bins": 8,
        "categorical": ["town", "income", "code"],
    }  # fmt: skip
    made = impute.Imputer.__new__(impute.Imputer)
    made.modality = build("data", data).resolved(tmp_path)
    made.table = made.modality.prepare(tmp_path / "cache")
    stored = codec_columns(made.table)
    made.columns = {name: column(dict(each)) for name, each in stored.items()}
    sizes_D = [c.size for c in made.columns.values()]

    def forward(symbols_WD, known_WD, asked_WD):
        which_A = np.nonzero(asked_WD)[1]
        return np.array([[v < sizes_D[d] for v in range(max(sizes_D))] for d in which_A], float)

    made._forward = forward
    monkeypatch.setattr(impute, "Imputer", lambda model: made)
    return made


def test_intervals_are_calibrated_on_values_that_are_hidden(untrained, tmp_path):
    """The model says that values lie at the ends of the range, so its own intervals hold all."""
    last = list(untrained.columns.values())[3]
    assert isinstance(last, Bins)

    def forward(symbols_WD, known_WD, asked_WD):
        p_V = np.where(np.isin(np.arange(last.size), [0, last.intervals - 1]), 0.5, 0.001)
        return np.tile(p_V, (int(asked_WD.sum()), 1))

    untrained._forward = forward
    lines = [f"Rome,7500,1,{x:.3f}" for x in np.random.default_rng(1).normal(size=2000)]
    (tmp_path / "new.csv").write_text("\n".join(["town,income,code,size", *lines]))
    frame, _, values = untrained.read(str(tmp_path / "new.csv"))
    hidden_NC = np.zeros((2000, 4), bool)
    hidden_NC[::2, 3] = True
    truth = values[3][::2]
    for level in (0.5, 0.9):
        cells = untrained.fill(frame, impute._hidden(values, hidden_NC), hidden_NC, level=level)
        held = float(((cells.low_K <= truth) & (truth <= cells.high_K)).mean())
        # Some 500 calibrate and 1000 are counted: standard error 2.7 points at most.
        assert held == pytest.approx(level, abs=0.07)
        p_V = forward(None, None, np.ones(1))[0]
        own = [last.quantile(p_V, q) for q in ((1 - level) / 2, (1 + level) / 2)]
        assert ((own[0] <= truth) & (truth <= own[1])).mean() > level + 0.06


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_only_blanks_change_and_unknown_values_are_named_and_kept(untrained, tmp_path, ending):
    assert untrained.columns["income"].names == ("12000", "7500", "9000")
    rows = list(poll(150, [*TOWNS, "Bergen", "Turin", "Turin"]))
    head = '\ufeff"town",note,income,code,size'
    made = [
        '(?:Rome|Lima|"Oslo, N"|"the ""Hague""")',
        "",
        "(?:12000|7500|9000)",
        "[012]\\.5",
        "\\S+",
    ]
    wanted = [
        [re.escape(v) if v not in ("", "NA") else made[c] for c, v in enumerate(r)] for r in rows
    ]
    lines, patterns = ([",".join(r) for r in each] for each in (rows, wanted))
    given = ending.join([head, lines[0], "", *lines[1:], ""])
    (tmp_path / "new.csv").write_text(given, newline="", encoding="utf-8")
    found = impute.impute(tmp_path, str(tmp_path / "new.csv"), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        out = file.read()
    assert re.fullmatch(ending.join([re.escape(head), patterns[0], "", *patterns[1:], ""]), out)
    for c, name in ((0, "town"), (2, "income"), (3, "code"), (4, "size")):
        missing = sum(row[c] in ("", "NA") for row in rows)
        assert found[name]["missing"] == found[name]["filled"] == missing > 5
    unknown = {name: sum(row[0] == name for row in rows) for name in ("Turin", "Bergen")}
    assert found["town"]["unknown"] == unknown
    assert found["income"]["unknown"] == found["code"]["unknown"] == {}
    said = (
        f"; {sum(unknown.values())} kept that training does not have: 'Turin' ({unknown['Turin']})"
    )
    assert said in "\n".join(_fill_lines(found, tmp_path / "out.csv"))


@pytest.mark.parametrize(
    ("known", "pattern"),
    [
        (["7", "1200000", "-3"], r"-?\d+"),
        (["7500", "7500.0", "1e5"], r"-?\d+"),
        (["7.50", "1", ".25"], r"-?\d+\.\d\d"),
        (["7.5e-8", "1"], r"-?[0-9.e-]+"),
        (["0.123456789", "1"], r"-?\d+(\.\d+)?"),
    ],
)
def test_a_filled_number_is_written_as_its_column_is(untrained, tmp_path, known, pattern):
    lines = [f"Rome,7500,1,{value}" for value in [*known, "", "NA"]]
    (tmp_path / "new.csv").write_text("\n".join(["town,income,code,size", *lines]))
    out = [tmp_path / "out.csv", tmp_path / "cells.csv"]
    impute.impute(tmp_path, str(tmp_path / "new.csv"), *out, draws=3)
    for line in out[0].read_text().splitlines()[-2:]:
        assert re.fullmatch(f"Rome,7500,1,{pattern}", line)
    for row in csv.reader(out[1].open().readlines()[1:]):
        assert all(re.fullmatch(pattern, drawn) for drawn in row[5:])


def test_values_are_rounded_to_those_that_a_column_can_have():
    numbers = Bins.fit(np.arange(10.0), 4)
    assert [impute._writer(numbers, [1, 2])(v) for v in (-0.2, 0.6, 1234567.8)] == [
        "0",
        "1",
        "1234568",
    ]
    assert [impute._writer(numbers, [True, False])(v) for v in (0.2, 0.7)] == ["False", "True"]
    assert impute._writer(numbers, [0.5, 1.0])(2.0) == "2.0"
    assert impute._writer(numbers, [])(1 / 3) == "0.333333"


def test_text_among_numbers_is_one_line_and_is_never_filled(untrained, tmp_path):
    (tmp_path / "new.csv").write_text("town,income,code,size\nRome,7500,,many\nLima,,1,\n")
    with pytest.raises(InputError, match=r"new\.csv:2: column 'size'; 'many' is not a number"):
        impute.impute(tmp_path, str(tmp_path / "new.csv"), tmp_path / "out.csv")
    untrained.modality = untrained.modality.model_copy(update={"errors": "skip"})
    impute.impute(tmp_path, str(tmp_path / "new.csv"), tmp_path / "out.csv")
    first, second = (tmp_path / "out.csv").read_text().split("\n")[1:3]
    assert re.fullmatch(r"Rome,7500,[012]\.5,many", first)
    assert re.fullmatch(r"Lima,(12000|7500|9000),1,-?[0-9.e-]+", second)


def test_a_check_against_the_truth_and_baselines(model, capsys):
    source = str(model[0].parent / "s.csv")
    assert main(["impute", str(model[0]), source, "--check", "0.3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {c["column"]: c for c in found["columns"]}
    # b is known from a, unless both are hidden; the mean knows nothing.
    error = by_name["b"]["error"]
    assert error["mptune"] < 0.8 * error["mean"]
    # Boosting finds the same; values in time say nothing of each other.
    assert error["HistGradientBoosting"] < 0.8 * error["mean"] < error["interpolation"]
    assert 0.8 < found["all_numbers"]["coverage"] < 0.97
    # A distribution is never farther away than its median; a single value's CRPS is its distance.
    loss = by_name["b"]["loss"]
    assert loss["mptune"] < 0.8 * loss["mean"] < 0.8 * error["mean"]
    assert all(c["unfilled"] == 0 and c["hidden"] > 20 for c in found["columns"])
    assert main(["impute", str(model[0]), source, "--check", "0.3", "--on", "seven"]) == 0
    assert "interval holds" in capsys.readouterr().out


def test_a_check_of_categories_counts_wrong_ones(untrained, tmp_path, monkeypatch):
    """The most probable town is Lima; half of the values are."""
    lima = untrained.columns["town"].number["Lima"]

    def forward(symbols_WD, known_WD, asked_WD):
        return np.tile(np.arange(12) == lima, (int(asked_WD.sum()), 1)) + 1e-3

    untrained._forward = forward
    lines = [f"{('Lima', 'Rome')[n % 2]},7500,1,{n / 9:.3f}" for n in range(400)]
    (tmp_path / "new.csv").write_text("\n".join(["town,income,code,size", *lines]))
    found = impute.check(tmp_path, str(tmp_path / "new.csv"), 0.5, on="all")
    towns, *_ = found["columns"]
    assert towns["measure"] == "wrong"
    assert towns["coverage"] is None
    assert towns["error"]["mptune"] == pytest.approx(0.5, abs=0.1)
    assert towns["error"]["HistGradientBoosting"] == pytest.approx(0.5, abs=0.15)
    assert towns["error"]["KNN"] is None
    wrong = -np.log(1e-3 / (1 + 1e-3 * untrained.columns["town"].size))
    assert towns["loss"]["mptune"] == pytest.approx(towns["error"]["mptune"] * wrong, rel=0.02)
    assert towns["loss"]["mean"] is None


def test_the_season_of_a_series_is_found_in_its_training_values():
    """Two cycles of 24 steps with noise, whose steps change slowly."""
    step, rng = np.arange(960), np.random.default_rng(0)
    truth_N1 = np.sin(2 * np.pi * step / 24)[:, None] + 0.05 * rng.standard_normal((960, 1))
    hidden_N1 = (step >= 720)[:, None] & (rng.random((960, 1)) < 0.3)
    given_N1 = np.where(hidden_N1, np.nan, truth_N1)
    task = Task(given_N1, hidden_N1, step < 720, [step], np.array([False]))
    wrong_N1 = np.abs(seasonal(task) - truth_N1)
    # Where neither the day before nor the day after is known, the last value stands.
    assert np.median(wrong_N1[hidden_N1]) < 0.1
    assert np.median(np.abs(last_value(task) - truth_N1)[hidden_N1]) > 0.15


def test_weights_in_an_object_store_are_found(model, tmp_path, capsys):
    moved = f"{bucket(tmp_path / 'bucket')}/trial"
    shutil.copytree(model[0], tmp_path / "trial")
    Remote(moved).take(tmp_path / "trial" / "model", "model", last="config.json")
    spec = json.loads((tmp_path / "trial" / "trial.json").read_text())
    (tmp_path / "trial" / "trial.json").write_text(json.dumps({**spec, "artifacts": moved}))
    source = str(model[0].parent / "s.csv")
    assert main(["impute", str(tmp_path / "trial"), source, "--out", str(tmp_path / "o.csv")]) == 0
    assert "filled of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{trial}", "{table}"], "nothing to do: give --out FILE"),
        (["{trial}", "{table}", "--check", "2"], "--check 2.0: must be between 0 and 1"),
        (["{trial}", "{table}", "--check", "0.2", "--on", "sevn"], "did you mean 'seven'?"),
        (["{trial}", "nosuch.csv", "--check", "0.2"], "TABLE: no such file"),
        (["nowhere", "{table}", "--check", "0.2"], "nowhere: no such directory"),
        (["{folder}", "{table}", "--check", "0.2"], "no trained weights in it"),
    ],
)
def test_errors_are_one_line(model, capsys, arguments, message):
    folder = model[0].parent
    places = {"trial": model[0], "table": folder / "s.csv", "folder": folder}
    assert main(["impute", *(a.format(**places) for a in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_table_without_a_column(model, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("site,t,a,bb,on\n1,2,3,4,1\n")
    assert main(["impute", str(model[0]), str(tmp_path / "t.csv"), "--check", "0.2"]) == 2
    assert "no column 'b'; there are site, t, a, bb, on; did you mean" in capsys.readouterr().err


def test_a_byte_order_mark_does_not_move_cells():
    text = '\ufeff"a,x",b\n1,\n2,\n3,\n'
    assert replace_cells(text, ".csv", {(0, "b"): "first"}) == text.replace("1,", "1,first")


def test_blank_quoted_cells_with_spaces_behind_them_are_replaced():
    text = 'a,b\n1,"NA"  \n2,"" \n3,"x" \n'
    filled = replace_cells(text, ".csv", {(0, "b"): "7", (1, "b"): "8"})
    assert filled == 'a,b\n1,7\n2,8\n3,"x" \n'
    with pytest.raises(InputError, match="row 3: its quotes"):
        replace_cells(text, ".csv", {(2, "b"): "9"})
