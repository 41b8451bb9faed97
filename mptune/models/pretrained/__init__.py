"""Masked-LM checkpoints in the Hugging Face format: text to tokens, and log p at masked positions.

This is a package, because every plain module of the parent folder is a family to be trained.

Shape suffixes: N sequences, D positions, B of a batch, K masked positions of the batch in row-major
order, V symbols of the vocabulary, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from mptune.artifacts import await_hub
from mptune.errors import InputError
from mptune.models._masked import (
    ATTENTION,
    MaskedPredictor,
    attend_both_ways,
    auto_class,
    first_outputs,
)
from mptune.models.base import IMPOSSIBLE
from mptune.models.families import Bert, ModernBert, Roberta, TransformersFamily
from mptune.models.pretrained.trainable import merged_state

if TYPE_CHECKING:
    from mptune.data._table import TokenTable

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

LONGEST = 512
"""Positions of a sequence if neither the model nor its tokenizer sets a limit."""

UNUSED = ("contact_head", "pooler")
"""Parts of an encoder that log p does not depend on; trained, they would have no gradients."""

NEVER_PREDICTED = ("mask", "pad", "cls", "sep", "bos", "eos")
"""Special symbols that do not occur in text; their logits are banned."""


@dataclass(frozen=True, eq=False)
class EncodedText:
    """Text as a table: `tokens` [N, D], and `observed` [N, D], False for specials and padding."""

    tokens: NDArray[np.int64]
    observed: BoolArray
    unknown: int
    """Observed positions that hold the unknown symbol, whose text is lost."""


class PretrainedMaskedLM:
    """A checkpoint in evaluation mode; `log_prob` is what `mptune.estimate_lml` takes.

    log p is over the vocabulary without the special symbols, with the log-softmax in float32;
    logits are computed at masked positions only.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, device: str | None = None) -> None:
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model.to(self.device)

    @classmethod
    def open(
        cls, name: str, revision: str | None = None, *, to_train: bool = False
    ) -> PretrainedMaskedLM:
        """Load a local folder or a model of the Hugging Face hub.

        A decoder whose tokenizer has a mask token is a masked diffusion model: it predicts a
        position from all others, in its own place.

        To train it, weights must be safetensors, are in single precision, and stay on the CPU.

        Raises:
            InputError: there is no such model, or it is not a masked language model.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        # A path must be a model's folder; anything else may be a name of the hub.
        path = Path(name)
        if path.is_dir() and not (path / "config.json").exists():
            raise InputError(f"{name}: not a model folder (no config.json in it)")
        if path.is_file():
            raise InputError(f"{name}: a file; a model is a folder with config.json and weights")
        is_path = path.is_absolute() or name.count("/") > 1 or name.startswith(".")
        if is_path and not path.exists():
            raise InputError(f"{name}: no such folder")
        if not path.exists():
            await_hub(name, "config.json", revision)
        quiet: Any = logging
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()
        given: dict[str, Any] = {"revision": revision or "main"}
        if to_train:
            given |= {"use_safetensors": True, "dtype": torch.float32}
        try:
            kind = auto_class(name, given["revision"])
            model, loaded = kind.from_pretrained(
                name, trust_remote_code=False, output_loading_info=True, **given
            )
            if kind is AutoModelForCausalLM:
                attend_both_ways(model)
        except Exception as error:  # broken files of many formats fail in as many ways
            raise InputError(f"{name}: {_first_line(error)}") from error
        missing = [key for key in loaded["missing_keys"] if not {*UNUSED} & {*key.split(".")}]
        if to_train and missing:
            first = min(missing)
            raise InputError(f"{name}: is no masked language model: it has no weights of {first}")
        return cls(name, model, _tokenizer(name, revision), "cpu" if to_train else None)

    @property
    def mask_id(self) -> int:
        """Input id of [MASK]."""
        return int(self.tokenizer.mask_token_id)

    @property
    def banned(self) -> list[int]:
        """Special symbols that do not occur in text, sorted."""
        found = {
            getattr(self.tokenizer, f"{special}_token_id", None) for special in NEVER_PREDICTED
        }
        return sorted(i for i in found if i is not None)

    @property
    def vocabulary_size(self) -> int:
        """V, rows of the output layer."""
        return int(self.model.config.vocab_size)

    @property
    def longest(self) -> int:
        """Most positions that a sequence may have, specials included."""
        config: Any = self.model.config
        reserved = first_position(self.model)  # rows of its table that are not used
        positions = getattr(config, "max_position_embeddings", None) or 0
        limits = [
            positions and positions - reserved,
            getattr(self.tokenizer, "model_max_length", 0),
        ]
        return min((int(limit) for limit in limits if limit and limit < 1e6), default=LONGEST)

    def pieces(self, text: str) -> list[int]:
        """Token ids of a text, without specials."""
        return self.spans(text)[0]

    def spans(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a text, without specials, and the character where each one begins.

        If the tokenizer does not report offsets, the beginnings are evenly spaced.
        """
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        cut = self.tokenizer(
            text, add_special_tokens=False, verbose=False, return_offsets_mapping=fast
        )
        ids = list(cut["input_ids"])
        if fast:
            return ids, [start for start, _ in cut["offset_mapping"]]
        return ids, [n * len(text) // max(len(ids), 1) for n in range(len(ids))]

    def same_tokens(self, other: PretrainedMaskedLM) -> bool:
        """Whether the two cut text into the same symbols with the same ids."""
        mine, theirs = self.tokenizer.get_vocab(), other.tokenizer.get_vocab()
        probe = "The quick brown fox (1984) isn't lazy >> 12.5 CC(=O)O"
        return bool(mine == theirs and self.pieces(probe) == other.pieces(probe))

    def encode(self, pieces: Sequence[Sequence[int]]) -> EncodedText:
        """Sequences of ids, between the specials that the model expects, as a padded table."""
        before, after = self.frame
        width = max((len(p) for p in pieces), default=0) + len(before) + len(after)
        tokens_ND = np.full((len(pieces), width), self.pad_id, np.int64)
        observed_ND = np.zeros(tokens_ND.shape, np.bool_)
        for n, piece in enumerate(pieces):
            row = [*before, *piece, *after]
            tokens_ND[n, : len(row)] = row
            observed_ND[n, len(before) : len(before) + len(piece)] = True
        unknown = observed_ND & (tokens_ND == self.tokenizer.unk_token_id)
        return EncodedText(tokens_ND, observed_ND, int(unknown.sum()))

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The specials before and after a text."""
        bare, framed = self.pieces("a"), list(self.tokenizer("a")["input_ids"])
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                return framed[:start], framed[start + len(bare) :]
        return [], []

    @property
    def room(self) -> int:
        """Most tokens of text in one sequence."""
        return self.longest - sum(map(len, self.frame))

    @property
    def pad_id(self) -> int:
        """Input id of padding."""
        return int(self.tokenizer.pad_token_id or 0)

    def log_prob(self, tokens_BD: NDArray[Any], mask_BD: BoolArray) -> FloatArray:
        """log p of the true token [B, D] in nats at masked positions, 0 elsewhere."""
        # Cut to the longest sequence of the batch, which is often shorter than the table.
        attend_BD = (tokens_BD != self.pad_id) | mask_BD
        width = int(np.flatnonzero(attend_BD.any(axis=0)).max()) + 1
        inputs_BD = np.where(mask_BD, self.mask_id, tokens_BD)[:, :width]
        inputs, attend, mask = (
            torch.from_numpy(a).to(self.device)
            for a in (inputs_BD, attend_BD[:, :width], mask_BD[:, :width])
        )
        logits_KV = self.logits(inputs, attend, mask)
        target_K = torch.from_numpy(tokens_BD[mask_BD]).to(self.device)
        log_prob_K = -cross_entropy(logits_KV, target_K, reduction="none")
        log_prob_BD = np.zeros(tokens_BD.shape)
        log_prob_BD[mask_BD] = log_prob_K.double().cpu().numpy()
        return log_prob_BD

    @torch.inference_mode()
    def logits(self, inputs_BD: Tensor, attend_BD: Tensor, mask_BD: Tensor) -> Tensor:
        """Logits [K, V] in float32, at masked positions only."""
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"
        )
        with autocast, _masked_only(self.model, mask_BD) as gathered:
            out = self.model(input_ids=inputs_BD, attention_mask=attend_BD.long()).logits
        logits_KV: Tensor = out[0] if gathered[0] else out[mask_BD]
        logits_KV = logits_KV.float()
        logits_KV[:, self.banned] = -torch.inf
        return logits_KV


class ContinuedMaskedLM(nn.Module):
    """A checkpoint to be trained, called as `MaskedModel.build` says.

    Symbols of the data have the ids of the checkpoint's tokenizer. [MASK] and [PAD] of the data
    become the checkpoint's, and each row gets the special tokens that it expects around a text.

    Raises:
        InputError: the data are cut by another tokenizer, or are longer than the checkpoint allows.
    """

    ids_V: Tensor
    before: Tensor
    after: Tensor
    banned: Tensor

    def __init__(self, checkpoint: PretrainedMaskedLM, predictable: int, length: int) -> None:
        super().__init__()
        symbols = len(checkpoint.tokenizer)
        if predictable != symbols:
            raise InputError(
                f"model.from {checkpoint.name}: its tokenizer has {symbols} symbols, the data have "
                f"{predictable}; set data.tokenizer: {checkpoint.name}"
            )
        if length > checkpoint.room:
            raise InputError(
                f"model.from {checkpoint.name}: has room for data.length {checkpoint.room}, not "
                f"{length}"
            )
        self.model: Any = checkpoint.model.train()
        self.predictable = predictable
        self._tokenizer, self._pad_id = checkpoint.tokenizer, checkpoint.pad_id
        own = [*range(predictable), checkpoint.mask_id, checkpoint.pad_id]
        before, after = checkpoint.frame
        buffers = {"ids_V": own, "before": before, "after": after, "banned": checkpoint.banned}
        for name, ids in buffers.items():
            self.register_buffer(name, torch.tensor(ids, dtype=torch.long), persistent=False)
        for name in UNUSED:
            if getattr(self.model.base_model, name, None) is not None:
                setattr(self.model.base_model, name, nn.Identity())
        self._chosen_K: Tensor | None = None
        self._predictor: tuple[MaskedPredictor] | None = None  # in a tuple it is no submodule
        family = known_family(self.model.config)
        if family is not None:
            self.model.set_attn_implementation(ATTENTION)
            parts = family.parts(self.model)
            self._predictor = (
                MaskedPredictor(predictable=symbols, pretrained=self.model, **parts),
            )
            # Not in `forward`: that would copy all logits, which costs up to 4 % of a step.
            parts["decoder"].forward = partial(self._decode, parts["decoder"])
        else:
            self.model.base_model.register_forward_hook(self._choose)

    def framed(
        self, tokens_BD: Tensor, flat_K: Tensor, attend_BD: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The checkpoint's inputs [B, L], where it may attend [B, L], and flat positions [K]."""
        rows, length = tokens_BD.shape
        first, last = len(self.before), len(self.after)
        place_D = torch.arange(1, length + 1, device=tokens_BD.device)
        if attend_BD is None:
            attend_BD = torch.ones_like(tokens_BD, dtype=torch.bool)
        end_B = (attend_BD * place_D).amax(1)  # padding is on the right
        inputs_BL = pad(self.ids_V[tokens_BD], (first, last), value=self._pad_id)
        inputs_BL[:, :first] = self.before
        end_BA = first + end_B[:, None] + torch.arange(last, device=tokens_BD.device)
        inputs_BL.scatter_(1, end_BA, self.after.expand(rows, last))
        may_BL = pad(attend_BD, (first, last), value=False)
        may_BL[:, :first] = True
        may_BL.scatter_(1, end_BA, True)
        place_K = flat_K + torch.div(flat_K, length, rounding_mode="floor") * (first + last) + first
        return inputs_BL, may_BL, place_K

    def forward(
        self,
        tokens_BD: Tensor,
        mask: Tensor,
        attend_BD: Tensor | None = None,
        document_BD: Tensor | None = None,
        place_BD: Tensor | None = None,
    ) -> Tensor:
        """logits [K, V] at the masked positions; special symbols have probability 0.

        Raises:
            InputError: several documents are packed into one row.
        """
        if document_BD is not None:
            raise InputError("model.from: cannot be trained with training.pack")
        flat_K = mask.flatten().nonzero()[:, 0] if mask.dtype == torch.bool else mask
        inputs_BL, given_BL, place_K = self.framed(tokens_BD, flat_K, attend_BD)
        # ESM counts masks by it.
        is_needed = attend_BD is not None or getattr(self.model.config, "token_dropout", False)
        may_BL = given_BL if is_needed else None
        if self._predictor is not None:
            first = first_position(self.model)
            place_BL = first + torch.arange(inputs_BL.shape[1], device=inputs_BL.device)[None]
            logits_KV: Tensor = self._predictor[0](inputs_BL, place_K, may_BL, place_BD=place_BL)
            return logits_KV
        self._chosen_K = place_K
        try:
            may = None if may_BL is None else may_BL.long()
            logits = self.model(input_ids=inputs_BL, attention_mask=may).logits
        finally:
            self._chosen_K = None
        if logits.shape[:-1] == inputs_BL.shape:  # an output that `_choose` does not know
            logits = logits.flatten(0, 1).index_select(0, place_K)
        logits_KV = logits.flatten(0, -2)[:, : self.predictable]
        return logits_KV.index_fill(1, self.banned, IMPOSSIBLE)

    def _decode(self, decoder: nn.Linear, inputs: Tensor) -> Tensor:
        return first_outputs(decoder, self.predictable, inputs, banned=self.banned)

    def _choose(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        """The encoder's output at the masked positions only, [1, K, W]: the head needs no other."""
        hidden = getattr(output, "last_hidden_state", None)
        if self._chosen_K is not None and hidden is not None:
            output["last_hidden_state"] = hidden.flatten(0, 1)[self._chosen_K][None]
        return output

    def save_pretrained(self, folder: str) -> None:
        """Write a folder like the checkpoint's, its tokenizer included; adapters are merged."""
        self.model.save_pretrained(folder, state_dict=merged_state(self.model))
        self._tokenizer.save_pretrained(folder)

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass.

        Raises:
            InputError: this architecture of transformers cannot.
        """
        if self._predictor is not None:
            self._predictor[0].checkpoint_activations()
            return
        try:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise InputError(f"training.deepspeed.activation_checkpointing: {error}") from None

    def check_tokenizer(self, table: TokenTable) -> None:
        """Check that the data were cut into the checkpoint's own symbols.

        Raises:
            InputError: another tokenizer has made them.
        """
        from tokenizers import Tokenizer

        file = table.path / "tokenizer.json"
        own, data = self._tokenizer.get_vocab(), None
        if file.exists():
            data = Tokenizer.from_file(str(file)).get_vocab()
        if data != own:
            raise InputError(
                "model.from: the data have the symbols of another tokenizer than the checkpoint's; "
                "checkpoints of one search have the same one, which is data.tokenizer"
            )


def first_position(model: Any) -> int:
    """The number of a model's first position: RoBERTa counts from the id after [PAD] on."""
    embeddings = getattr(getattr(model, "base_model", model), "embeddings", None)
    return int(getattr(embeddings, "padding_idx", -1)) + 1


def known_family(config: Any) -> TransformersFamily | None:
    """The family whose fast path fits a checkpoint of this configuration; None: the general path.

    Not ESM's: its checkpoints scale embeddings by the share of masks, which needs their own path.
    """
    match config.model_type:
        case "bert":
            return Bert()
        case "roberta":
            return Roberta()
        case "modernbert":
            return ModernBert(window=config.local_attention)
    return None


@contextmanager
def _masked_only(model: nn.Module, mask_BD: Tensor) -> Iterator[list[bool]]:
    """Inside it, the head gets the encoder's output at masked positions only, [1, K, W].

    Heads of masked models work position by position, so this only changes the cost. Yields a list
    with one flag, whether it worked: an encoder with another kind of output is left unchanged.
    """
    gathered = [False]

    def gather(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None or hidden.shape[:2] != mask_BD.shape:
            return output
        gathered[0] = True
        output["last_hidden_state"] = hidden[mask_BD][None]
        return output

    encoder: Any = getattr(model, "base_model", model)
    handle = encoder.register_forward_hook(gather)
    try:
        yield gathered
    finally:
        handle.remove()


def _tokenizer(name: str, revision: str | None = None) -> Any:
    """The model's own tokenizer.

    Raises:
        InputError: there is none, or it has no [MASK].
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # tokenizers of many kinds fail in as many ways
        raise InputError(f"{name}: its tokenizer: {_first_line(error)}") from error
    if tokenizer.mask_token_id is None:
        raise InputError(f"{name}: its tokenizer has no mask token, so it is not a masked model")
    return tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
