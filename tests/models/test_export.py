"""Kept weights of every modality, opened where mptune is not imported."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mptune import plugins
from mptune.errors import InputError
from mptune.models._masked import check_opens
from mptune.spec.schema import MODEL_KEYS, build

OPEN = """
import sys, torch
from transformers import AutoModelForMaskedLM
for folder in sys.argv[1:]:
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    inputs_BD, attend_BD, mask_BD = torch.load(folder + "/inputs.pt")
    with torch.inference_mode():
        logits_BDV = model(inputs_BD, attention_mask=attend_BD.long()).logits
    torch.save(logits_BDV[mask_BD].log_softmax(1), folder + "/log_p.pt")
assert not [name for name in sys.modules if name.partition(".")[0] == "mptune"]
"""

TABLE = {"source": "people.csv", "bins": 6}
DATA = {
    "text": {"source": "python-stdlib", "max_train_sequences": 64, "max_heldout_sequences": 32},
    "array": {"source": "ids.npy"},
    "image": {"source": "images.npz", "shape": [4, 6]},
    "series": TABLE | {"channels": ["age", "level"], "time": "t", "window": 4},
    "tabular": TABLE | {"columns": ["age", "town"]},
}
"""One of each modality: symbols and positions, a line or a grid, as many symbols or fewer."""

FAMILIES = [name for name in plugins.modules("families") if name not in MODEL_KEYS]
CASES = [
    *((kind, "modernbert") for kind in plugins.modules("modalities")),
    *((kind, family) for kind in ("text", "series") for family in FAMILIES if family[0] != "m"),
]


def prepared(kind, folder):
    """The token table of this modality's data, of which some is missing."""
    rng = np.random.default_rng(0)
    np.save(folder / "ids.npy", rng.integers(-1, 7, (60, 12)))
    np.savez(folder / "images.npz", images=rng.random((60, 24)) > 0.5, labels=np.arange(60))
    rows = [f"{t},{rng.normal() if t % 5 else ''},{'ABC'[t % 3]},{t % 3}" for t in range(200)]
    (folder / "people.csv").write_text("\n".join(["t,age,town,level", *rows]))
    section = {"kind": kind, "heldout": 0.25, **DATA[kind]}
    if kind in ("text", "array"):
        section["length"] = 12
    return build("data", section).resolved(folder).prepare(folder / "cache")


def kept(table, family, folder):
    """Write random weights of a model for the table; returns log p at masked positions."""
    member = build("model", {"family": family, "width": 32, "depth": 2})
    torch.manual_seed(0)
    module = member.build(table.total_vocabulary, table.vocabulary_size, table.length).eval()
    member.lay_out(module, tuple(table.axes.values()), table.sizes)
    with torch.no_grad():
        for parameter in module.parameters():  # as after training, far from uniform
            parameter.add_(0.3 * torch.randn_like(parameter))
    tokens_BD = torch.from_numpy(np.asarray(table.heldout.tokens[:4]).astype(np.int64))
    attend_BD = tokens_BD != table.pad_id
    mask_BD = attend_BD & (torch.rand(tokens_BD.shape) < 0.4)
    tokens_BD[mask_BD] = table.mask_id
    with torch.inference_mode():
        log_p_KV = module(tokens_BD, mask_BD, attend_BD).log_softmax(1)
    module.save_pretrained(str(folder))
    torch.save(module.state_dict(), folder / "module.pt")
    torch.save((tokens_BD, attend_BD, mask_BD), folder / "inputs.pt")
    check_opens(folder, folder / "module.pt", table, member)
    return log_p_KV


@pytest.fixture(scope="module")
def opened(tmp_path_factory, warm):
    """log p of mptune and of transformers, by modality and family."""
    home = tmp_path_factory.mktemp("export")
    tables = {kind: prepared(kind, home) for kind in plugins.modules("modalities")}
    folders = [home / "-".join(case) for case in CASES]
    wanted = [kept(tables[k], f, folder) for (k, f), folder in zip(CASES, folders, strict=True)]
    (home / "open.py").write_text(OPEN)
    warm.run(home, "open.py", *map(str, folders))
    found = [torch.load(folder / "log_p.pt") for folder in folders]
    return dict(zip(CASES, zip(wanted, found, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_transformers_gives_the_same_log_probabilities(opened, case):
    wanted_KV, found_KV = opened[case]
    symbols = wanted_KV.shape[1]
    torch.testing.assert_close(found_KV[:, :symbols].exp(), wanted_KV.exp(), atol=1e-6, rtol=1e-5)
    assert found_KV[:, symbols:].exp().max() == 0  # [MASK] and [PAD]


def test_a_folder_that_gives_other_log_probabilities_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    table = prepared("tabular", tmp_path)
    kept(table, "bert", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    state["axes.0.weight"] *= 1.01
    save_file(state, file, {"format": "pt"})
    member = build("model", {"family": "bert", "width": 32, "depth": 2})
    with pytest.raises(InputError, match=r"other log-probabilities in transformers, by 0\.\d+ n"):
        check_opens(tmp_path / "model", tmp_path / "model" / "module.pt", table, member)
