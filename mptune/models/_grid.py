"""A masked model whose positions lie on a grid, for transformers: kept weights have a copy of this.

Tables and series have an embedding of each coordinate (time, column) and symbols that some
positions cannot have; no architecture of transformers has these. So the folder of such a model
holds a copy of this file, which needs only torch and transformers, and

    AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)

runs it. Without `trust_remote_code`, transformers refuses the folder.

Shape suffixes: B sequences, D positions, V input ids, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class GridConfig(PreTrainedConfig):  # type: ignore[misc]
    """The configuration of the model without its grid, and the grid.

    Attributes:
        plain: configuration of a masked model of transformers, as a mapping.
        axes: sizes of the grid, slowest first; empty if positions are a line.
        sizes: possible symbols at each position [D]: those below it.
    """

    model_type = "mptune_grid"

    def __init__(
        self,
        plain: dict[str, Any] | None = None,
        axes: Sequence[int] = (),
        sizes: Sequence[int] = (),
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.plain, self.axes, self.sizes = plain or {}, list(axes), list(sizes)


class GridForMaskedLM(PreTrainedModel):  # type: ignore[misc]
    """A masked model of transformers with embeddings of coordinates; impossible symbols are banned.

    [MASK] and [PAD] are the last two input ids, and impossible everywhere.
    """

    config: GridConfig
    config_class = GridConfig

    def __init__(self, config: GridConfig) -> None:
        super().__init__(config)
        plain = AutoConfig.for_model(**config.plain)
        self.plain = AutoModelForMaskedLM.from_config(plain)
        width = self.plain.get_input_embeddings().embedding_dim
        self.axes = nn.ModuleList(nn.Embedding(size, width) for size in config.axes)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **others: Any,
    ) -> MaskedLMOutput:
        """Logits [B, D, V]; with labels [B, D], -100 where none, the mean loss too."""
        place_D = torch.arange(input_ids.shape[1], device=input_ids.device)
        tokens_BDW = self.plain.get_input_embeddings()(input_ids)
        if self.config.axes:
            places = torch.unravel_index(place_D, tuple(self.config.axes))
            for table, coordinate_D in zip(self.axes, places, strict=True):
                tokens_BDW = tokens_BDW + table(coordinate_D)
        found: MaskedLMOutput = self.plain(
            inputs_embeds=tokens_BDW,
            attention_mask=attention_mask,
            position_ids=place_D[None],
            **others,
        )
        assert found.logits is not None
        size_D = torch.tensor(self.config.sizes, device=input_ids.device)[place_D]
        symbol_V = torch.arange(found.logits.shape[-1], device=input_ids.device)
        found.logits = found.logits.masked_fill(symbol_V >= size_D[:, None], -torch.inf)
        if labels is not None:
            found.loss = cross_entropy(found.logits.flatten(0, 1), labels.flatten())
        return found


GridConfig.register_for_auto_class()
GridForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
