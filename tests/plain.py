"""A model family of torch alone: transformers takes seconds to import in every rank of a test.

`install` makes it known to the processes whose PYTHONPATH names the folder.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mptune.models.base import ModelFamily

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).parents[1]

PAUSE = "MPTUNE_TEST_PAUSE"
"""Environment variable: the path of a file. While it exists, a forward waits a tenth of a second:
a trial then lasts long enough to be disturbed, and leaves the processors to other tests.
"""


class Plain(ModelFamily):
    """Per-position layers on the token and the mean of all tokens."""

    family: Literal["plain"] = "plain"

    def build(self, vocabulary: int, predictable: int, length: int) -> nn.Module:
        import torch
        from torch import nn

        optimize_without_compiler()

        class Module(nn.Module):
            def __init__(self, width: int, depth: int) -> None:
                super().__init__()
                self.tokens = nn.Embedding(vocabulary, width)
                self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
                self.decoder = nn.Linear(width, predictable)

            def forward(self, tokens_BD: Any, mask: Any, attend_BD: Any = None, *more: Any) -> Any:
                if os.path.exists(os.environ.get(PAUSE, "")):
                    time.sleep(0.1)
                hidden_BDW = self.tokens(tokens_BD)
                seen_BDW = hidden_BDW if attend_BD is None else hidden_BDW * attend_BD[..., None]
                hidden_BDW = hidden_BDW + seen_BDW.mean(1, keepdim=True)
                flat_K = mask.flatten().nonzero()[:, 0] if mask.dtype == torch.bool else mask
                hidden_KW = hidden_BDW.flatten(0, 1)[flat_K]
                for layer in self.layers:
                    hidden_KW = hidden_KW + torch.tanh(layer(hidden_KW))
                return self.decoder(hidden_KW)

        return Module(self.width, self.depth)

    def parameters(self, vocabulary: int, length: int) -> int:
        layers = self.depth * self.width * (self.width + 1)
        return vocabulary * self.width + layers + (self.width + 1) * (vocabulary - 2)


def optimize_without_compiler() -> None:
    """Let AdamW work without torch's compiler, which a rank takes two seconds to import.

    Decorators import it that matter in compiled code only.
    """
    import torch
    from torch.optim import Adam, Optimizer

    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        plain = getattr(Optimizer, name).__wrapped__
        plain.__dynamo_disable = plain  # what the decorator calls
    Adam.step = torch.no_grad()(Adam.step.__wrapped__)


def write_plugin(site: Path, module: str, group: str, name: str, code: str) -> Path:
    """An installed package with one plugin, in a folder for PYTHONPATH."""
    (site / module).mkdir(parents=True)
    (site / module / "__init__.py").touch()
    (site / module / f"{name}.py").write_text(code)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mptune.{group}]\n{name} = {module}.{name}\n")
    files = (
        f"{module}/__init__.py",
        *(f"{info.name}/{n}" for n in ("METADATA", "entry_points.txt")),
    )
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    return site


def install(folder: Path) -> Path:
    """The folder with this family as a plugin."""
    site = folder / "plain"
    if not site.exists():
        code = Path(__file__).read_text()
        write_plugin(site, "plain_family", "families", "plain", code)
    return site
