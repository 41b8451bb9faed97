"""Writes watch.npz, which watch.yaml reads. seglearn keeps its recordings as a pickle.

Needs `pip install mptune[examples]`. A pickle may run code: open only those that you trust.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np


def main(file: str) -> None:
    """Write the steps of all recordings one after the other, each step with its labels."""
    (folder,) = find_spec("seglearn").submodule_search_locations
    path = Path(folder) / "data" / "watch_dataset.npy"
    held = np.load(path, allow_pickle=True).item()
    lengths = [len(recording) for recording in held["X"]]
    labels = {name: np.asarray(held[name]) for name in ("subject", "side", "y")}
    labels["recording"] = np.arange(len(lengths))
    np.savez(file, X=np.concatenate(held["X"]), **{k: v.repeat(lengths) for k, v in labels.items()})


if __name__ == "__main__":
    main(*sys.argv[1:] or [str(Path(__file__).with_name("watch.npz"))])
