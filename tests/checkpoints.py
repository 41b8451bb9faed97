"""Small masked-LM checkpoints on disk, with tokenizers of their own; nothing is downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

ALPHABET = sorted(set("abcdefghijklmnopqrstuvwxyz .,"))
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
    from transformers import AutoConfig, AutoModelForMaskedLM

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
    )
    model = AutoModelForMaskedLM.from_config(config)
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
        out = model(input_ids=tokens.masked_fill(mask, 4), attention_mask=(tokens != 0).long())
        loss = torch.nn.functional.cross_entropy(out.logits[mask], tokens[mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def reactions_model():
    """Folder of the reaction-SMILES model that ships inside rxnmapper, or None."""
    found = find_spec("rxnmapper")
    if found is None or not found.submodule_search_locations:
        return None
    root = Path(found.submodule_search_locations[0])
    return next((str(p.parent) for p in root.glob("models/transformers/*/config.json")), None)


def esterifications():
    """Reaction strings: every acid with every alcohol gives its ester."""
    acids = ["CC({})=O", "CCC({})=O", "O=C({})c1ccccc1", "CC(C)C({})=O", "O=C({})C1CCCCC1"]
    acids += ["O=C({})c1ccc(F)cc1", "O=C({})c1cccnc1", "O=C({})CCl", "COc1ccc(C({})=O)cc1"]
    alcohols = ["OC", "OCC", "OC(C)C", "OCc1ccccc1", "OC1CCCCC1", "OCC(F)(F)F", "OCCBr", "OCC=C"]
    alcohols += ["OCCN1CCOCC1", "OCc1ccc(Cl)cc1", "OCCCC", "OCC(C)C", "OCCOC", "OCCC#N"]
    return [f"{a.format('O')}.{b}>>{a.format(b)}" for a in acids for b in alcohols]
