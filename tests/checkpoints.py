"""Small masked-LM checkpoints on disk, with tokenizers of their own; nothing is downloaded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ALPHABET = sorted(set("abcdefghijklmnopqrstuvwxyz .,"))
DECODERS = ("llama", "qwen3")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "away", "from", "home")


def sentences(n, seed=0):
    """Lines of words, a little predictable."""
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(WORDS), (n, 6), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in row) + "." for row in picked]


def tokenizer(pairs=()):
    """Characters, and any merged ``pairs`` of them as one symbol."""
    from tokenizers import Tokenizer, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIALS, *ALPHABET, *("".join(p) for p in pairs)]
    ids = {word: n for n, word in enumerate(words)}
    built = Tokenizer(BPE(ids, list(pairs), unk_token="[UNK]"))
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=built, **dict(zip(names, SPECIALS, strict=True)), model_max_length=64
    )


def save(folder, *, seed=0, pairs=(), steps=0, family="bert"):
    """A two-layer model of `family`; ``steps`` of training on unigrams tell it something."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    cut = tokenizer(pairs)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(cut),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        pad_token_id=0,
        **({"embedding_size": 32} if family == "albert" else {}),
        **({"num_key_value_heads": 2, "head_dim": 16} if family in DECODERS else {}),
    )
    kind = AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM
    model = kind.from_config(config, attn_implementation="sdpa" if family in DECODERS else None)
    _train(model, cut, steps)
    model.save_pretrained(folder)
    cut.save_pretrained(folder)
    return str(folder)


def _train(model, cut, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        rows = [cut(line)["input_ids"][:64] for line in sentences(16, seed=1000 + step)]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = (tokens > 4) & (torch.rand(tokens.shape) < torch.rand(len(rows), 1))
        may = tokens != 0
        if model.config.model_type in DECODERS:  # which see what follows, given a mask of each pair
            may = may[:, None, None].expand(-1, 1, width, -1)
        out = model(input_ids=tokens.masked_fill(mask, 4), attention_mask=may)
        loss = torch.nn.functional.cross_entropy(out.logits[mask], tokens[mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def reactions_model(folder):
    """The reaction-SMILES model that ships inside rxnmapper, with a tokenizer that transformers
    opens: greedy longest match over its vocabulary. Skips the test if it is not installed."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    found = find_spec("rxnmapper")
    if found is None:
        pytest.skip("rxnmapper is not installed; `make test` installs it")
    (given,) = Path(found.submodule_search_locations[0]).glob("models/transformers/*")
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).symlink_to(given / name)
    special = json.loads((given / "special_tokens_map.json").read_text())
    ids = {word: n for n, word in enumerate((given / "vocab.txt").read_text().splitlines())}
    options = {"continuing_subword_prefix": "", "max_input_chars_per_word": 1 << 20}
    cut = Tokenizer(WordPiece(ids, unk_token=special["unk_token"], **options))
    cut.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    ends = [(name, ids[name]) for name in (special["cls_token"], special["sep_token"])]
    cut.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=cut, **special).save_pretrained(folder)
    return str(folder)


def esterifications():
    """Reaction strings: every acid with every alcohol gives its ester."""
    acids = ["CC({})=O", "CCC({})=O", "O=C({})c1ccccc1", "CC(C)C({})=O", "O=C({})C1CCCCC1"]
    acids += ["O=C({})c1ccc(F)cc1", "O=C({})c1cccnc1", "O=C({})CCl", "COc1ccc(C({})=O)cc1"]
    alcohols = ["OC", "OCC", "OC(C)C", "OCc1ccccc1", "OC1CCCCC1", "OCC(F)(F)F", "OCCBr", "OCC=C"]
    alcohols += ["OCCN1CCOCC1", "OCc1ccc(Cl)cc1", "OCCCC", "OCC(C)C", "OCCOC", "OCCC#N"]
    return [f"{a.format('O')}.{b}>>{a.format(b)}" for a in acids for b in alcohols]
