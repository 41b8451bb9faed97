"""Checks of a `model` section, and of the folder that a trained model is kept in."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mptune.artifacts import store_at
from mptune.errors import InputError
from mptune.models._conformance import conformance
from mptune.paths import TrialDirectory
from mptune.spec.schema import build
from mptune.tools.prepare import table_of_trial

if TYPE_CHECKING:
    from torch import Tensor

OPEN = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
folder, file = sys.argv[1:]
tokens_BD, attend_BD = torch.load(file)
config, mask = AutoConfig.from_pretrained(folder, trust_remote_code=True), attend_BD.long()
kind = AutoModelForMaskedLM
if config.architectures[0].endswith("ForCausalLM"):  # attends both ways, given a mask of each pair
    kind, mask = AutoModelForCausalLM, attend_BD[:, None, None].expand(-1, 1, len(mask[0]), -1)
model = kind.from_pretrained(folder, dtype=torch.float64, trust_remote_code=True)
with torch.inference_mode():
    logits_BDV = model.eval()(tokens_BD, attention_mask=mask).logits
torch.save(logits_BDV, file)
sys.exit("mptune was imported" if "mptune" in sys.modules else 0)
"""
"""What another program does with the folder."""


def check_model(
    model: Mapping[str, Any], symbols: int, length: int
) -> tuple[str, int, Iterator[tuple[str, str | None]]]:
    """The model in words, its parameters, and its checks with what is wrong or None.

    Args:
        symbols: that can be predicted; [MASK] and padding come on top.

    Raises:
        InputError: the section is wrong, or no model can be made of it.
    """
    try:
        member = build("model", model).sized(symbols + 2, length)
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    checks = conformance(lambda: member.build(symbols + 2, symbols, length), symbols, length)
    return member.words(), member.parameters(symbols + 2, length), checks


def check_folder(directory: Path) -> tuple[str, float]:
    """Open a trial's kept model in a process of its own, without mptune, and compare log p.

    Returns:
        The folder or URL, and the largest difference in nats.

    Raises:
        InputError: there are no kept weights, they do not open, or give another log p.
    """
    from mptune.models._masked import check_opens

    files = TrialDirectory(directory)
    trial, table = table_of_trial(files)
    family = build("model", trial.model)
    store = store_at(trial.artifacts or files.root).inside(files.weights.name)
    with store.fetched(store.children()) as folder:
        weights = folder / files.module.name
        if not weights.exists():
            raise InputError(f"{store}: no kept weights; train with training.keep_weights: true")
        return str(store), check_opens(folder, weights, table, family, _logits)


def _logits(folder: Path, tokens_BD: Tensor, attend_BD: Tensor, own: bool) -> Tensor:
    """Logits [B, D, V] of a folder, by a Python without mptune and the user's own paths."""
    import torch

    from mptune.models import _grid

    ours = Path(_grid.__file__)
    code = [] if own else list(folder.glob("*.py"))
    if [path for path in code if path.read_bytes() != ours.read_bytes()]:
        raise InputError(f"{folder}: has code that is not of this mptune, which is not run")
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / "tensors.pt"
        torch.save((tokens_BD, attend_BD), file)
        command = [sys.executable, "-I", "-c", OPEN, str(folder.absolute()), str(file)]
        done = subprocess.run(command, cwd=aside, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise InputError(f"{folder}: does not open without mptune: {last}")
        found: Tensor = torch.load(file)
    return found
