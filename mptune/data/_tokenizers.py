"""Text to ids: bytes, characters, or a tokenizer of the `tokenizers` library.

Every codec has a `vocabulary_size` V and turns documents into ids 0..V-1 with `encode`. It also
gives which ids are known (an unknown one is not observed), and the bytes of text of the known ones,
for scores in bits per byte.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mptune.artifacts import await_hub
from mptune.data._records import Record
from mptune.data._table import TokenTable
from mptune.errors import did_you_mean, message_of
from mptune.paths import write_json

KINDS = ("bytes", "characters", "bpe")

TRAIN_BYTES = 64 * 2**20
"""Text that a BPE is trained on; more would cost memory and change few merges."""

MASK, PAD = "<|mask|>", "<|pad|>"
"""Tokens with which `save_for_transformers` extends a tokenizer; hardly one has them already."""

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Encoded:
    """One document as ids [L], which of them are known [L], and the bytes of the known ones."""

    ids: NDArray[Any]
    known: BoolArray
    size: int


def text_of(record: Record) -> str:
    """The document as characters.

    Raises:
        ValueError: it is not UTF-8; names the file, the row and the byte.
    """
    try:
        return record.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{record.place}: {not_utf8(error)}") from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """The message for a text that is not UTF-8."""
    return f"byte {error.start} is not UTF-8; use tokenizer: bytes"


class Bytes:
    """One id per byte, V = 256."""

    vocabulary_size = 256

    def encode(self, records: Sequence[Record]) -> list[Encoded]:
        return [
            Encoded(ids := np.frombuffer(r.content, np.uint8), np.ones(len(ids), bool), len(ids))
            for r in records
        ]


class Characters:
    """One id per character that the training documents have; others are unknown."""

    def __init__(self, alphabet: NDArray[np.uint32]) -> None:
        self._alphabet = alphabet
        self._id = np.zeros(int(alphabet[-1]) + 2, np.uint32)
        self._id[alphabet] = np.arange(len(alphabet))
        self._known = np.zeros(len(self._id), bool)
        self._known[alphabet] = True

    @classmethod
    def fit(cls, records: Iterable[Record]) -> Characters:
        """The alphabet of these documents."""
        found: set[str] = set()
        for record in records:
            found.update(text_of(record))
        return cls(np.array(sorted(map(ord, found)), np.uint32))

    @property
    def vocabulary_size(self) -> int:
        return len(self._alphabet)

    def encode(self, records: Sequence[Record]) -> list[Encoded]:
        found = []
        for record in records:
            codes = np.frombuffer(text_of(record).encode("utf-32-le"), "<u4")
            place = np.minimum(codes, len(self._id) - 1)
            known = self._known[place]
            size = len(codes[known].tobytes().decode("utf-32-le").encode())
            found.append(Encoded(self._id[place], known, size))
        return found

    def save(self, folder: Path) -> None:
        """Write the alphabet into the table's folder."""
        np.save(folder / "alphabet.npy", self._alphabet)


class Subwords:
    """A tokenizer of the `tokenizers` library, without the special tokens that it would add."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._unknown = None if unknown is None else tokenizer.token_to_id(unknown)

    @classmethod
    def train(cls, records: Iterable[Record], vocabulary_size: int) -> Subwords:
        """A byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) of these documents."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_some(records), trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, name: str) -> Subwords:
        """A `tokenizer.json`, a folder that holds one, or a name on the Hugging Face hub.

        Raises:
            ValueError: there is no such tokenizer.
        """
        from tokenizers import Tokenizer

        path = tokenizer_file(name)
        try:
            if path is None:
                await_hub(name, "tokenizer.json")
            made = Tokenizer.from_file(str(path)) if path else Tokenizer.from_pretrained(name)
            # A checkpoint never predicts its special symbols: "[SEP]" in a text is plain text.
            made.encode_special_tokens = path is None or (path.parent / "config.json").exists()
        except Exception as error:
            raise ValueError(
                f"tokenizer: {name!r} is not one of {', '.join(KINDS)}, nor a local folder, and "
                f"cannot be loaded: {message_of(error)}{did_you_mean(name, KINDS)}"
            ) from None
        return cls(made)

    @property
    def vocabulary_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, records: Sequence[Record]) -> list[Encoded]:
        texts = [text_of(r) for r in records]
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        encoded = []
        for each, text, record in zip(found, texts, records, strict=True):
            ids = np.array(each.ids, np.uint32)
            known = np.ones(len(ids), bool) if self._unknown is None else ids != self._unknown
            size = len(record.content)
            if not known.all():  # the batch has no offsets
                whole = self._tokenizer.encode(text, add_special_tokens=False)
                pairs = zip(whole.ids, whole.offsets, strict=True)
                unknown = [text[a:b] for i, (a, b) in pairs if i == self._unknown]
                size -= sum(len(part.encode()) for part in unknown)
            encoded.append(Encoded(ids, known, size))
        return encoded

    def save(self, folder: Path) -> None:
        """Write the tokenizer into the table's folder."""
        self._tokenizer.save(str(folder / "tokenizer.json"))


Codec = Bytes | Characters | Subwords


def tokenizer_file(name: str) -> Path | None:
    """The `tokenizer.json` of a local path (a folder or the file), or None."""
    path = Path(name)
    if path.is_dir() and (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    return path if path.is_file() else None


def save_for_transformers(table: TokenTable, folder: Path) -> None:
    """Write the tokenizer of a table of text for transformers: with its ids, [MASK] and [PAD].

    Characters that training does not have become [PAD], as in the table. Of numbers and categories
    the bins and names are written, as `columns.json`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    unknown = None
    if (table.path / "tokenizer.json").exists():
        stored = json.loads((table.path / "tokenizer.json").read_text(encoding="utf-8"))
        # Sequences were cut from documents without the special tokens that it would add.
        tokenizer = Tokenizer.from_str(json.dumps({**stored, "post_processor": None}))
        unknown = getattr(tokenizer.model, "unk_token", None)
    elif (table.path / "alphabet.npy").exists():
        unknown = PAD
        symbols = {chr(code): n for n, code in enumerate(np.load(table.path / "alphabet.npy"))}
        symbols |= {MASK: table.mask_id, PAD: table.pad_id}
        tokenizer = Tokenizer(models.WordLevel(symbols, unk_token=PAD))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    elif table.bytes_per_token is not None:
        # The characters with which `ByteLevel` writes bytes: printable ones stand for themselves.
        printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
        others = {byte: 256 + n for n, byte in enumerate(sorted({*range(256)} - printable))}
        symbols = {chr(others.get(byte, byte)): byte for byte in range(256)}
        tokenizer = Tokenizer(models.BPE(symbols, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        if (table.path / "codec.json").exists():
            shutil.copy(table.path / "codec.json", folder / "columns.json")
        return
    wanted, mask, pad = {None, table.mask_id, table.pad_id}, MASK, PAD
    while not {tokenizer.token_to_id(mask), tokenizer.token_to_id(pad)} <= wanted:
        mask, pad = f"<{mask}>", f"<{pad}>"  # the tokenizer has such tokens of its own
    tokenizer.add_special_tokens([mask, pad])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "mask_token": mask,
        "pad_token": pad,
        "model_max_length": table.length,
    }
    write_json(
        folder / "tokenizer_config.json", settings | ({"unk_token": unknown} if unknown else {})
    )


def _some(records: Iterable[Record]) -> Iterator[str]:
    left = TRAIN_BYTES
    for record in records:
        yield text_of(record)
        left -= len(record.content)
        if left <= 0:
            return
