"""A mask policy as a data collator for Hugging Face's `Trainer`.

A dataloader's workers draw batches before the step that trains on them, so progress must not be
read from a variable that the training changes. Here the sampler of an attached trainer stamps
every example with the optimizer step that will train on it.

Shape suffixes: B sequences of a batch, D positions of the longest of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from mptune.errors import InputError
from mptune.policies._structures import words_of
from mptune.policies.base import BoolArray, IntArray, MaskPolicy, draw_batch

STAMP = "mptune_stamp"
IGNORED = -100
"""The label that Hugging Face's losses leave out."""

_PADDED = ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask")


class MaskingCollator:
    """Pads and masks examples by a policy; use it in place of `DataCollatorForLanguageModeling`.

        collator = mptune.MaskingCollator("policy.yaml", tokenizer, total_steps)
        trainer = Trainer(model, arguments, train_dataset=dataset, data_collator=collator)
        collator.attach(trainer)

    With `attach`, every batch has the number of its optimizer step: the masks are the same for any
    number of dataloader workers, over epochs and after a resume. Without it, only a policy whose
    law does not change works. Evaluation draws the same masks for the same examples, at progress 1.
    Of a dataset without a length, batches are numbered as the loader takes them, from its workers
    in turn; so if one worker's shard ends early, the steps of the others' last batches run ahead.

    Special tokens and padding are never masked. Labels are the true ids at masked positions and
    -100 elsewhere. The model's own loss is `reduction: token_mean`; for `seq_mean` give
    `compute_loss_func=collator.loss` to the trainer.

    Args:
        policy: a policy, or the path of a YAML file.
        tokenizer: with `pad`, `mask_token_id` and `get_special_tokens_mask`.
        total_steps: optimizer steps of the whole training, at least 1.
        seed: of the masks, at least 0.
        pad_to_multiple_of: as of the tokenizer's `pad`.

    Raises:
        InputError: the policy's file is wrong, the tokenizer has no [MASK], or the policy is
            learned from the loss, which a collator does not know.
    """

    def __init__(
        self,
        policy: MaskPolicy | str | Path,
        tokenizer: Any,
        total_steps: int,
        *,
        seed: int = 0,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        self.policy = policy if isinstance(policy, MaskPolicy) else MaskPolicy.load(policy)
        self.tokenizer, self.total_steps, self.seed = tokenizer, total_steps, seed
        self.pad_to_multiple_of = pad_to_multiple_of
        if total_steps < 1:
            raise InputError(f"total_steps {total_steps}: must be at least 1")
        if tokenizer.mask_token_id is None:
            raise InputError("the tokenizer has no mask token, which masked training needs")
        if self.policy.relearn_every is not None:
            raise InputError(
                f"policy {self.policy.kind!r} is learned from the loss, which a collator does not "
                "know; use the policy that it led to: mptune best --export policy.yaml"
            )
        # Whether q(M | s) depends on s, judged on sequences of 64 positions.
        laws = [self.policy.pmf(64, step / 32) for step in range(33)]
        self._changes = any((law_M != laws[0]).any() for law_M in laws)
        self._attached, self._accumulation, self._calls = False, 1, 0
        whole_word = self.policy.structure.kind == "whole_word"
        self._joins = word_joins(tokenizer) if whole_word else None

    def __call__(self, features: Sequence[Any]) -> dict[str, Tensor]:
        """The batch: `input_ids`, `attention_mask`, ... and `labels`, all int64 [B, D].

        Raises:
            InputError: unattached, with a law that changes.
            ValueError: the sequences do not fit the policy's structure.
        """
        stamps = [f.get(STAMP) for f in features if isinstance(f, Mapping)]
        kept = [
            {k: f[k] for k in _PADDED if k in f} if isinstance(f, Mapping) else {"input_ids": f}
            for f in features
        ]
        multiple = self.pad_to_multiple_of
        batch = dict(self.tokenizer.pad(kept, return_tensors="pt", pad_to_multiple_of=multiple))
        tokens_BD = batch["input_ids"].numpy()
        observed_BD = self._observed(batch)
        step, key = stamps[0] if stamps and stamps[0] is not None else self._unstamped(tokens_BD)
        drawn = draw_batch(
            self.policy,
            tokens_BD,
            observed_BD,
            progress=min(step / self.total_steps, 1.0),
            seed=self.seed,
            step=key,
            mask_id=int(self.tokenizer.mask_token_id),
            vocabulary_size=len(self.tokenizer),
            words_BD=None if self._joins is None else words_of(tokens_BD, self._joins),
        )
        batch["labels"] = torch.from_numpy(np.where(drawn.mask_BD, tokens_BD, IGNORED))
        batch["input_ids"] = torch.from_numpy(drawn.inputs_BD)
        return batch

    def attach(self, trainer: Any) -> Any:
        """Make the trainer stamp its training batches with their step; returns the trainer."""
        arguments = trainer.args
        self._attached, self._accumulation = True, int(arguments.gradient_accumulation_steps)
        trainer.get_train_dataloader = lambda: self._loader(trainer)
        return trainer

    def loss(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The policy's loss, nats per masked position, for `Trainer(compute_loss_func=...)`.

        Args:
            outputs: with `logits` [B, D, V].
            labels: [B, D], -100 where not masked.
            num_items_in_batch: masked positions of all batches of the step.

        Raises:
            InputError: `reduction: elbo`, whose weights need more than the labels.
        """
        if self.policy.reduction == "elbo":
            raise InputError("reduction 'elbo' needs more than labels; use seq_mean or token_mean")
        masked_BD = labels != IGNORED
        loss_K = cross_entropy(
            outputs.logits[masked_BD].float(), labels[masked_BD], reduction="none"
        )
        if self.policy.reduction == "token_mean":
            share = masked_BD.sum() * self._accumulation
            return loss_K.sum() / (share if num_items_in_batch is None else num_items_in_batch)
        counts_B = masked_BD.sum(1)
        weight_K = (1.0 / counts_B.clamp(min=1))[masked_BD.nonzero()[:, 0]]
        return (loss_K * weight_K).sum() / (len(labels) * self._accumulation)

    def _observed(self, batch: dict[str, Tensor]) -> BoolArray:
        """Positions that may be masked: neither special nor padding."""
        special = batch.pop("special_tokens_mask", None)
        if special is None:
            rows = batch["input_ids"].tolist()
            ask = self.tokenizer.get_special_tokens_mask
            special = torch.tensor([ask(row, already_has_special_tokens=True) for row in rows])
        observed_BD: BoolArray = ~special.bool().numpy()
        if "attention_mask" in batch:
            observed_BD = observed_BD & batch["attention_mask"].bool().numpy()
        return observed_BD

    def _unstamped(self, tokens_BD: IntArray) -> tuple[int, int]:
        """(step, key of the masks) of a batch without stamps."""
        if self._attached:
            return self.total_steps, zlib.crc32(tokens_BD.tobytes()) | 1 << 62
        if self._changes:
            raise InputError(
                "the policy changes over training, but the collator does not know the step; "
                "call collator.attach(trainer) before trainer.train()"
            )
        if get_worker_info() is not None:
            return 0, int(torch.randint(1 << 62, ()))
        self._calls += 1
        return 0, self._calls - 1

    def _loader(self, trainer: Any) -> Any:
        """The trainer's own training loader, with stamped examples."""
        arguments, dataset = trainer.args, trainer.train_dataset
        order = torch.Generator().manual_seed(
            arguments.seed if arguments.data_seed is None else arguments.data_seed
        )
        batch, workers = arguments.train_batch_size, arguments.dataloader_num_workers
        per_step = batch * arguments.world_size * self._accumulation
        stamped: Any = _Stamped(dataset)
        sampler = None
        if isinstance(dataset, IterableDataset):
            stamped = _StampedStream(dataset, batch, per_step, workers)
        else:
            sampler = _StampingSampler(len(dataset), per_step, order.initial_seed())
        return trainer.accelerator.prepare(
            DataLoader(
                stamped,
                batch_size=batch,
                sampler=sampler,
                collate_fn=self,
                num_workers=workers,
                pin_memory=arguments.dataloader_pin_memory,
                persistent_workers=arguments.dataloader_persistent_workers,
                prefetch_factor=arguments.dataloader_prefetch_factor if workers else None,
                drop_last=arguments.dataloader_drop_last,
            )
        )


class _StampingSampler(Sampler[tuple[int, int, int]]):
    """A seeded permutation per epoch, each index with its optimizer step and its own number."""

    def __init__(self, examples: int, per_step: int, seed: int) -> None:
        self.examples, self.per_step, self.seed, self.epoch = examples, per_step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch, resumed or not."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.examples

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        words = np.random.Philox(key=np.array([self.seed, self.epoch], np.uint64))
        order = np.argsort(words.random_raw(self.examples), kind="stable")
        before = self.epoch * -(-self.examples // self.per_step)
        for place, index in enumerate(order.tolist()):
            yield index, before + place // self.per_step, self.epoch * self.examples + place


class _Stamped(Dataset[dict[str, Any]]):
    """A dataset whose examples include the stamp that came with their index."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, stamped: tuple[int, int, int]) -> dict[str, Any]:
        index, step, number = stamped
        return _with_stamp(self._dataset[index], step, number)


class _StampedStream(IterableDataset[dict[str, Any]]):
    """A dataset without a length, whose examples include the stamp of the batch they will be in.

    Args:
        dataset: an iterable; in a dataloader's worker, one that yields that worker's examples only.
        batch, per_step: examples of a batch of the loader, and of an optimizer step.
        workers: of the loader.
    """

    def __init__(self, dataset: Any, batch: int, per_step: int, workers: int) -> None:
        self._dataset, self._batch, self._per_step = dataset, batch, per_step
        # Shared with the workers: their batches so far, and those before this epoch.
        self._taken_W = torch.zeros(max(workers, 1), dtype=torch.int64)
        self._before = torch.zeros(1, dtype=torch.int64)
        for shared in (self._taken_W, self._before):
            shared.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch; batches that make no whole step do not count."""
        each = self._per_step // self._batch
        self._before.fill_(int(self._taken_W.max()) // each * each)
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info, before = get_worker_info(), int(self._before)
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # Hugging Face's streams leave workers beyond their shards without examples.
        workers = min(workers, getattr(self._dataset, "num_shards", workers))
        for i, example in enumerate(self._dataset):
            number = before + i // self._batch * workers + worker
            self._taken_W[worker] = number + 1
            place = number * self._batch + i % self._batch
            yield _with_stamp(example, place // self._per_step, place)


def _with_stamp(example: Any, step: int, number: int) -> dict[str, Any]:
    fields = dict(example) if isinstance(example, Mapping) else {"input_ids": example}
    return {**fields, STAMP: (step, number)}


def word_joins(tokenizer: Any) -> BoolArray:
    """Which tokens belong to the word on their left, and on their right, bool [2, ids].

    Derived from the marks of the common tokenizers: `##` continues a word (WordPiece); a space mark
    begins one (byte-level BPE, SentencePiece). Special tokens belong to no word.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_ids)
    pieces = any(str(t).startswith("##") for t in tokens)
    left = [
        str(t).startswith("##") if pieces else not str(t).startswith(("Ġ", "▁", "Ċ", " "))
        for t in tokens
    ]
    alone = np.array([i in special for i in range(len(tokens))])
    return np.stack([np.array(left) & ~alone, ~alone])
