"""Statistics of a prepared table, and warnings of what would spoil the score.

Shape suffixes: _ND sequences x positions, _N sequences, _D positions, _C channels, _V symbols.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mptune.data._table import Split, TokenTable
from mptune.errors import plural
from mptune.trial import MIN_GROUPS

CHUNK = 8192
"""Sequences in memory at a time."""

EXAMPLE_RATE = 0.3
"""Share of the observed positions masked in the example."""

SMALL_HELDOUT = 100
"""Fewer held-out sequences leave intervals too wide to tell policies apart."""

LEAK = 0.01
"""Share of held-out sequences that are training sequences too, above which a warning is given."""

LEAST_FILLED = 0.5
"""Training rows with less than this observed are mostly padding or gaps."""

SHORTEST_TWIN = 8
"""Shorter sequences are equal by chance."""

Report = dict[str, Any]


def inspect(table: TokenTable) -> Report:
    """Counts, lengths, vocabulary, missingness, duplicates, an example, warnings; plain JSON."""
    splits = {"train": table.train, "heldout": table.heldout}
    splits |= {name: table.domain(name) for name in table.domains}
    counts = {name: _tokens(split, table.vocabulary_size) for name, split in splits.items()}
    twins = _row_hashes(table.train)
    report: Report = {
        "description": table.description,
        "hash": table.hash,
        "vocabulary": _vocabulary(table, counts["train"]),
        "length": table.length,
        "axes": dict(table.axes),
        "grouped_by": table.grouped_by,
        "bytes_per_token": table.bytes_per_token,
        "log_bin_width": table.log_bin_width,
        "skipped": dict(table.skipped),
        "unknown": dict(table.unknown),
        "splits": {
            name: _split(split, counts[name], counts["train"], twins if name != "train" else None)
            for name, split in splits.items()
        },
        "channels": _channels(table),
        "example": _example(table),
    }
    return report | {"warnings": list(_warnings(report))}


# --- splits ------------------------------------------------------------------------------------


def _chunks(split: Split) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    for start in range(0, len(split), CHUNK):
        rows = slice(start, start + CHUNK)
        yield np.asarray(split.tokens[rows]), np.asarray(split.observed[rows])


def _tokens(split: Split, size: int) -> NDArray[np.int64]:
    """How often each symbol is observed [V]."""
    counts_V = np.zeros(size, np.int64)
    for tokens_ND, observed_ND in _chunks(split):
        counts_V += np.bincount(tokens_ND[observed_ND].astype(np.int64), minlength=size)
    return counts_V


def _split(
    split: Split,
    counts_V: NDArray[np.int64],
    train_V: NDArray[np.int64],
    twins: NDArray[np.uint64] | None,
) -> Report:
    lengths_N = np.concatenate([observed_ND.sum(1) for _, observed_ND in _chunks(split)])
    sizes_G = np.unique(split.groups, return_counts=True)[1]
    log_p_V = np.log((train_V + 0.5) / (train_V + 0.5).sum())
    found: Report = {
        "sequences": len(split),
        "groups": len(sizes_G),
        "sequences_per_group": [float(v) for v in np.quantile(sizes_G, [0, 0.5, 1])],
        "observed": int(lengths_N.sum()),
        "observed_share": float(lengths_N.mean() / split.tokens.shape[1]),
        "observed_per_sequence": [int(v) for v in np.quantile(lengths_N, [0, 0.5, 1])],
        "unigram_nats_per_token": float(-(counts_V @ log_p_V) / max(counts_V.sum(), 1)),
    }
    if twins is not None:
        found["also_in_train"] = int(np.isin(_row_hashes(split, SHORTEST_TWIN), twins).sum())
    return found


def _row_hashes(split: Split, least: int = 0) -> NDArray[np.uint64]:
    """A 64-bit hash of each sequence; those with fewer than `least` observed have none."""
    words = np.random.Philox(key=np.uint64(1)).random_raw(2 * split.tokens.shape[1]) | 1
    token_D, observed_D = words.reshape(2, -1)
    parts = []
    for tokens_ND, observed_ND in _chunks(split):
        hashed_N = (tokens_ND.astype(np.uint64) + 1) * observed_ND @ token_D
        parts.append((hashed_N ^ (observed_ND @ observed_D))[observed_ND.sum(1) >= least])
    return np.unique(np.concatenate(parts)) if not least else np.concatenate(parts)


def _vocabulary(table: TokenTable, counts_V: NDArray[np.int64]) -> Report:
    words = _decoder(table)
    common = np.argsort(-counts_V, kind="stable")[:12]
    p_V = counts_V[counts_V > 0] / counts_V.sum()
    return {
        "size": table.vocabulary_size,
        "used_in_training": int((counts_V > 0).sum()),
        "entropy_nats": float(-(p_V * np.log(p_V)).sum()),
        "most_common": [
            [words([int(v)]), round(float(counts_V[v] / counts_V.sum()), 5)]
            for v in common
            if counts_V[v]
        ],
    }


# --- channels ----------------------------------------------------------------------------------


def codec_columns(table: TokenTable) -> Mapping[str, Mapping[str, Any]]:
    """The fitted columns of a table, by name; empty for text."""
    path = table.path / "codec.json"
    if not path.exists():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))["columns"]


def _channels(table: TokenTable) -> list[Report]:
    """Missingness of each channel or column by split; nothing for text and images."""
    columns = codec_columns(table)
    if not columns or "row" in table.axes:
        return []
    missing = {}
    for name, split in (("train", table.train), ("heldout", table.heldout)):
        observed_D = np.sum([observed_ND.sum(0) for _, observed_ND in _chunks(split)], axis=0)
        missing[name] = 1 - (observed_D / len(split)).reshape(-1, len(columns)).mean(0)
    return [
        {
            "name": name,
            "symbols": table.sizes[number],
            "single_values": len(column.get("atoms", ())),
            "missing": {split: float(share[number]) for split, share in missing.items()},
            **{key: column[key] for key in ("mean", "scale") if key in column},
        }
        for number, (name, column) in enumerate(columns.items())
    ]


# --- example -----------------------------------------------------------------------------------


def _decoder(table: TokenTable) -> Callable[[list[int]], str]:
    """A function from ids to readable text."""
    if (table.path / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(table.path / "tokenizer.json"))
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))
    if (table.path / "alphabet.npy").exists():
        alphabet = np.load(table.path / "alphabet.npy")
        return lambda ids: "".join(chr(alphabet[i]) for i in ids)
    if table.bytes_per_token is not None:
        return lambda ids: bytes(ids).decode("utf-8", "replace")
    return lambda ids: " ".join(map(str, ids))


def _example(table: TokenTable) -> str:
    """One held-out sequence, a mask drawn on it: `▒` masked, `·` not observed."""
    split = table.heldout
    row = int(np.argmax(np.asarray(split.observed[:CHUNK]).sum(1)))
    tokens_D, observed_D = np.asarray(split.tokens[row]), np.asarray(split.observed[row])
    rng = np.random.default_rng(0)
    places = np.flatnonzero(observed_D)
    masked = rng.choice(places, max(1, round(EXAMPLE_RATE * len(places))), replace=False)
    mask_D = np.isin(np.arange(table.length), masked)
    if table.axes or not table.bytes_per_token:
        return _grid(table, tokens_D, observed_D, mask_D)
    text, kind_D = _decoder(table), np.where(mask_D, 2, np.where(observed_D, 1, 0))
    found = []
    for part in np.split(np.arange(len(kind_D)), np.flatnonzero(np.diff(kind_D)) + 1):
        shown = kind_D[part[0]]
        found.append(text(tokens_D[part].tolist()) if shown == 1 else "·▒▒"[shown] * len(part))
    return "".join(found).replace("\r", " ")


def _grid(
    table: TokenTable,
    tokens_D: NDArray[Any],
    observed_D: NDArray[np.bool_],
    mask_D: NDArray[np.bool_],
) -> str:
    """Symbols on their grid, one line per channel or image row."""
    cells = [
        "▒" if masked else str(token) if seen else "·"
        for token, seen, masked in zip(tokens_D.tolist(), observed_D, mask_D, strict=True)
    ]
    shape = list(table.axes.values())
    if len(shape) != 2:
        return " ".join(cells)
    grid = np.array(cells, object).reshape(shape)
    names = list(codec_columns(table)) if "channel" in table.axes else [""] * shape[0]
    lines = grid.T if "channel" in table.axes else grid
    width, label = max(map(len, cells)), max(map(len, names))
    return "\n".join(
        f"{name:{label}} {' '.join(f'{cell:>{width}}' for cell in line)}".rstrip()
        for name, line in zip(names, lines, strict=True)
    )


# --- warnings ----------------------------------------------------------------------------------


def _warnings(report: Report) -> Iterator[str]:
    splits = report["splits"]
    home, train = splits["heldout"], splits["train"]
    for name, split in splits.items():
        twins = split.get("also_in_train", 0)
        if twins > LEAK * split["sequences"]:
            yield (
                f"leakage: {twins} of {split['sequences']} {name} sequences are also training "
                "sequences, so the score rewards memorising; hold out whole groups, or make "
                "sequences longer"
            )
    if home["sequences"] < SMALL_HELDOUT:
        yield (
            f"only {home['sequences']} held-out sequences: intervals will be wide; hold out more"
        )
    groups = {name: split["groups"] for name, split in splits.items() if name != "train"}
    if few := [f"{n} in {name}" for name, n in groups.items() if n < MIN_GROUPS]:
        yield (
            f"fewer than {MIN_GROUPS} groups ({report['grouped_by']}): {', '.join(few)}; intervals "
            "hold for these only and say nothing about others"
        )
    if train["observed_share"] < LEAST_FILLED:
        yield (
            f"only {train['observed_share']:.0%} of the training positions are observed: shorter "
            "sequences, or training.pack, waste less"
        )
    for name, count in report["unknown"].items():
        yield f"not scored, as training does not have them: {plural(count, 'symbol')} of {name}"
    for reason, count in report["skipped"].items():
        yield f"skipped {count}: {reason}"
    for channel in report["channels"]:
        if channel["symbols"] < 2:
            yield (
                f"channel {channel['name']!r} is constant in training: predicting it costs nothing "
                "and makes every score better; leave it out"
            )
        for split, share in channel["missing"].items():
            if math.isclose(share, 1):
                yield f"channel {channel['name']!r} is never observed in {split}"
