"""Series, tables and images: windows, gaps, splits, domains."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mptune.data import _sources as sources
from mptune.data._table import TokenTable
from mptune.spec.schema import build

RNG = np.random.default_rng


def write_csv(path, rows=None, **columns):
    heads = list(columns)
    rows = list(zip(*columns.values(), strict=True)) if rows is None else rows
    lines = [",".join(heads)] + [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def stations(path, hours=240):
    rng = RNG(0)
    rows = [
        (s, t * 3600, round(float(np.sin(t / 4) + rng.normal() / 5), 3), int(rng.integers(3)))
        for s in ("a", "b", "c")
        for t in range(hours)
    ]
    rows = [r for r in rows if r[1] not in (10 * 3600, 11 * 3600)]
    write_csv(path, rows, station=[], time=[], temp=[], rain=[])


def series(folder, **options):
    given = {
        "kind": "series", "source": "s.csv", "channels": ["temp", "rain"], "window": 6,
        "group": "station", "time": "time", "heldout": 0.3, "bins": 8, **options,
    }  # fmt: skip
    return build("data", given).resolved(folder)


def test_windows_are_time_by_channel_and_gaps_are_not_observed(tmp_path):
    stations(tmp_path / "s.csv")
    table = series(tmp_path).prepare(tmp_path / "cache")
    assert (table.length, dict(table.axes)) == (12, {"time": 6, "channel": 2})
    assert (len(table.train), len(table.heldout)) == (80, 40)
    second = np.asarray(table.train.observed[1]).reshape(6, 2)
    assert second.all(1).tolist() == [True] * 4 + [False] * 2  # hours 10 and 11
    assert table.sizes == (8, 3) * 6
    assert (np.asarray(table.heldout.tokens[table.heldout.observed]) < 8).all()


def test_widths_are_those_of_each_value(tmp_path):
    stations(tmp_path / "s.csv")
    table = series(tmp_path).prepare(tmp_path / "cache")
    widths = np.asarray(table.heldout.log_widths).reshape(-1, 6, 2)
    assert (widths[..., 1] == 0).all()  # rain has three values: probabilities
    assert (widths[..., 0] != 0).any()
    assert (widths[~np.asarray(table.heldout.observed).reshape(-1, 6, 2)] == 0).all()
    assert table.train.log_widths is None


def test_scores_in_standard_deviations_or_in_units(tmp_path):
    stations(tmp_path / "s.csv")
    plain = series(tmp_path, units="raw").prepare(tmp_path / "cache")
    unitless = series(tmp_path).prepare(tmp_path / "cache")
    scale = json.loads((plain.path / "codec.json").read_text())["columns"]["temp"]["scale"]
    difference = np.asarray(plain.heldout.log_widths) - np.asarray(unitless.heldout.log_widths)
    assert difference.max() == pytest.approx(np.log(scale) * (np.log(scale) > 0), abs=1e-5)
    assert plain.hash != unitless.hash


def test_no_window_crosses_a_split_or_a_series(tmp_path):
    rows = [(s, t, t // 7 % 2, 70 * s + t) for s in (0, 1) for t in range(70)]
    write_csv(tmp_path / "s.csv", rows, station=[], time=[], out=[], number=[])
    options = {"window": 5, "channels": ["number"], "bins": 200, "units": "raw"}
    data = series(tmp_path, heldout_where={"out": 1}, **options)
    table = data.prepare(tmp_path / "cache")
    assert (len(table.train), len(table.heldout)) == (10, 10)
    frame = data.frame(sources.files("source", data.source))
    windows, _ = data._grid(frame, data.splits(frame))
    assert len(windows) == 20
    for rows in windows:
        assert (np.diff(rows) == 1).all()
        assert len({(row // 70, row % 70 // 7) for row in rows.tolist()}) == 1


def test_one_long_series_is_held_out_in_stretches(tmp_path):
    rows = [(t, np.sin(t / 9), 0.5 * t) for t in range(6000)]
    write_csv(tmp_path / "s.csv", rows, time=[], temp=[], rain=[])
    table = series(tmp_path, group=None, window=6).prepare(tmp_path / "cache")
    assert table.groups == {"train": 70, "heldout": 30}
    assert (len(table.train), len(table.heldout)) == (700, 300)


def test_latest_times_are_held_out(tmp_path):
    stations(tmp_path / "s.csv")
    table = series(tmp_path, split="time").prepare(tmp_path / "cache")
    assert table.groups == {"train": 3, "heldout": 3}
    assert len(table.train) / (len(table.train) + len(table.heldout)) == pytest.approx(
        0.7, abs=0.05
    )


def test_training_windows_may_overlap_and_others_never_do(tmp_path):
    stations(tmp_path / "s.csv")
    dense = series(tmp_path, stride=1).prepare(tmp_path / "cache")
    sparse = series(tmp_path).prepare(tmp_path / "cache")
    assert len(dense.train) > 5 * len(sparse.train)
    assert len(dense.heldout) == len(sparse.heldout)


def test_domains_are_neither_trained_on_nor_held_out(tmp_path):
    stations(tmp_path / "s.csv")
    domains = {
        "site b": {"where": {"station": "b"}},
        "noisy": {"noise": 1.0},
        "gappy": {"missing": 0.5},
    }
    table = series(tmp_path, domains=domains, heldout=0.5).prepare(tmp_path / "cache")
    assert [len(table.domain(n)) for n in domains] == [40, 40, 40]
    assert (len(table.train), len(table.heldout)) == (40, 40)
    home, noisy, gappy = table.heldout, table.domain("noisy"), table.domain("gappy")
    assert (noisy.observed == home.observed).all()
    assert (np.asarray(noisy.tokens) != np.asarray(home.tokens)).mean() > 0.3
    assert gappy.observed.sum() == pytest.approx(home.observed.sum() / 2, rel=0.1)
    assert TokenTable.open(table.path).domains == tuple(domains)


def test_recordings_of_several_lengths_with_labels_of_their_rows(tmp_path):
    rng, lengths = RNG(0), [30, 41, 52, 28]
    labels = {"subject": [1, 1, 2, 3], "y": [0, 1, 0, 1], "recording": range(4)}
    held = {name: np.repeat(np.array(each), lengths) for name, each in labels.items()}
    np.savez(tmp_path / "watch.npz", X=rng.normal(size=(sum(lengths), 3)), **held)
    data = series(
        tmp_path, source="watch.npz", values="X", channels=["u", "v", "w"], group="subject",
        time=None, window=10, domains={"late": {"where": {"y": 1}}},
    )  # fmt: skip
    table = data.prepare(tmp_path / "cache")
    assert len(table.train) + len(table.heldout) + len(table.domain("late")) == 3 + 4 + 5 + 2


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_pickles_are_refused_with_what_to_do(tmp_path, save):
    file = tmp_path / ("evil.npy" if save is np.save else "evil.npz")
    save(file, np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match=rf"{file.name}: not a NumPy file of numbers; write"):
        series(tmp_path, source=file.name).prepare(tmp_path / "cache")


def people(path, rows=200):
    rng = RNG(0)
    write_csv(
        path,
        age=np.where(rng.random(rows) < 0.1, "", rng.integers(18, 90, rows).astype(str)).tolist(),
        town=[*rng.choice(["rome", "oslo", "NA", "lima"], rows - 1).tolist(), "nome"],
        code=rng.integers(0, 2, rows).tolist(),
        site=rng.choice(["n", "s"], rows).tolist(),
    )


def tabular(folder, **options):
    given = {"kind": "tabular", "source": "p.csv", "columns": ["age", "town", "code"], **options}
    return build("data", given).resolved(folder)


def test_a_table_of_numbers_and_categories(tmp_path):
    people(tmp_path / "p.csv")
    table = tabular(tmp_path, categorical=["code"], bins=6).prepare(tmp_path / "cache")
    assert (table.length, dict(table.axes), table.sizes[2]) == (3, {"column": 3}, 2)
    assert (len(table.train), len(table.heldout)) == (180, 20)
    share = np.asarray(table.train.observed).mean(0)
    assert share[0] == pytest.approx(0.9, abs=0.05)
    assert share[1] == pytest.approx(0.75, abs=0.1)
    assert share[2] == 1


def test_a_row_without_a_group_is_one_of_its_own(tmp_path):
    sites = [*np.repeat(["n", "s", "w", "e"], 25).tolist(), *["", "NA", "-", "x"]]
    write_csv(tmp_path / "p.csv", value=np.arange(104).tolist(), site=sites)
    options = {"columns": ["value"], "group": "site", "heldout": 0.5}
    table = tabular(tmp_path, **options).prepare(tmp_path / "cache")
    assert table.groups == {"train": 4, "heldout": 4}
    assert "3 rows without site, each a group of its own" in table.description
    numbers = RNG(0).normal(size=104).tolist()
    write_csv(tmp_path / "s.csv", temp=numbers, rain=numbers, site=sites)
    table = series(tmp_path, group="site", time=None, window=5).prepare(tmp_path / "cache")
    assert len(table.train) + len(table.heldout) == 4 * 5, "a single row is no window"
    assert "3 rows without site, in no sequence" in table.description


def test_a_category_that_only_the_held_out_rows_have_is_counted(tmp_path):
    people(tmp_path / "p.csv")
    data = tabular(tmp_path, heldout_where={"town": ["lima", "nome"]}, rare=1)
    table = data.prepare(tmp_path / "cache")
    assert sum(table.unknown.values()) == len(table.heldout)


def test_images_lie_on_a_grid(tmp_path):
    images = RNG(0).integers(0, 5, (60, 4, 6))
    np.savez(tmp_path / "i.npz", values=images, label=np.arange(60) % 3)
    section = {
        "kind": "image", "source": "i.npz", "shape": [4, 6], "bins": 16,
        "domains": {"twos": {"where": {"label": 2}}},
    }  # fmt: skip
    table = build("data", section).resolved(tmp_path).prepare(tmp_path / "cache")
    assert dict(table.axes) == {"row": 4, "column": 6}
    assert (len(table.train), len(table.heldout), len(table.domain("twos"))) == (36, 4, 20)
    assert table.vocabulary_size == 5
    rows = np.setdiff1d(np.arange(60), np.arange(2, 60, 3))
    both = np.concatenate([table.train.tokens, table.heldout.tokens])
    assert np.sort(both.sum(1)).tolist() == np.sort(images[rows].sum((1, 2))).tolist()
