"""Model classes of the user's own: a right one, and wrong ones that each fail one check."""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mptune.cli import main
from mptune.errors import DoesNotFit, InputError
from mptune.models import _memory as memory
from mptune.models._conformance import CHECKS
from mptune.spec.schema import Training, build
from mptune.spec.source import SpecFile
from mptune.training.execution import check_module
from mptune.trial import Device

SYMBOLS, LENGTH = 20, 12


class Right(nn.Module):
    """One attention layer."""

    def __init__(
        self, vocab_size, max_position_embeddings, pad_token_id=None, hidden=16, dropout=0.1
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, hidden)
        self.places = nn.Embedding(max_position_embeddings, hidden)
        self.block = nn.TransformerEncoderLayer(hidden, 2, 32, dropout, batch_first=True)
        self.output = nn.Linear(hidden, vocab_size)

    def hidden(self, input_ids, attention_mask):
        inputs = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        padding = None if attention_mask is None else attention_mask == 0
        return self.block(inputs, src_key_padding_mask=padding)

    def forward(self, input_ids, attention_mask=None):
        return self.output(self.hidden(input_ids, attention_mask))


class Narrow(Right):
    def forward(self, input_ids, attention_mask=None, masked_positions=None):
        hidden = self.hidden(input_ids, attention_mask)
        return self.output(hidden.flatten(0, 1)[masked_positions])


class OwnSeed(Right):
    def __init__(self, **given):
        super().__init__(**given)
        nn.init.normal_(self.output.weight, generator=torch.Generator().manual_seed(id(self)))


class FewSymbols(Right):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask)[..., :-3]


class Infinite(Right):
    def forward(self, input_ids, attention_mask=None):
        return super().forward(input_ids, attention_mask) / 0


class NoContext(Right):
    def hidden(self, input_ids, attention_mask):
        return self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]))


class Remembers(Right):
    last = 0.0

    def forward(self, input_ids, attention_mask=None):
        logits = super().forward(input_ids, attention_mask) + self.last
        self.last = nn.functional.one_hot(input_ids, logits.shape[-1]).float()
        return logits


class AcrossBatch(Right):
    """Forgets `batch_first`: attention sees the other sequences, which may show a hidden token."""

    def __init__(self, **given):
        super().__init__(**given)
        self.across = nn.MultiheadAttention(16, 2)

    def hidden(self, input_ids, attention_mask):
        hidden = super().hidden(input_ids, attention_mask)
        return hidden + self.across(hidden, hidden, hidden)[0]


class ReadsPadding(Right):
    def hidden(self, input_ids, attention_mask):
        return super().hidden(input_ids, None)


class Noisy(Right):
    def forward(self, input_ids, attention_mask=None):
        logits = super().forward(input_ids, attention_mask)
        return logits + torch.rand(logits.shape)


class NoisyInTraining(Right):
    calls = 0

    def forward(self, input_ids, attention_mask=None):
        self.calls += self.training
        return super().forward(input_ids, attention_mask) * (1 + self.calls)


class Unused(Right):
    def __init__(self, **given):
        super().__init__(**given)
        self.spare = nn.Linear(2, 2)


class Unsaved(Right):
    def __init__(self, **given):
        super().__init__(**given)
        self.projection = torch.randn(16, 16)  # no buffer

    def hidden(self, input_ids, attention_mask):
        return super().hidden(input_ids, attention_mask) @ self.projection


WRONG = {
    OwnSeed: ("constructor", "other weights with the same seed"),
    FewSymbols: ("shape", r"logits are \[2, 12, 19\]; they must be \[2, 12, 22\]"),
    Infinite: ("numbers", "not finite"),
    NoContext: ("context", "the same whatever the other tokens are"),
    Remembers: ("leak", "depend on an earlier call"),
    AcrossBatch: ("leak", "the other sequences of the batch"),
    ReadsPadding: ("padding", "tokens where the attention mask is 0"),
    Noisy: ("repeats", "in eval mode give other logits"),
    NoisyInTraining: ("repeats", "in train mode with the same seed"),
    Unused: ("gradient", "spare.weight gets none"),
    Unsaved: ("state", "same state_dict gives other logits"),
}


def section(kind, **given):
    return {"class": f"{__name__}:{kind.__name__}", **given}


def checked(kind, capsys, tmp_path, **given):
    file = tmp_path / "model.yaml"
    lines = [f"{key}: {value}" for key, value in section(kind, **given).items()]
    file.write_text(f"model: {{{', '.join(lines)}}}")
    code = main(["check", str(file), "--vocabulary", str(SYMBOLS), "--length", str(LENGTH)])
    head, *lines = capsys.readouterr().out.splitlines()
    return code, head, dict(line.split(maxsplit=1) for line in lines)


@pytest.mark.parametrize("kind", [Right, Narrow])
def test_a_right_model_passes_every_check(kind, capsys, tmp_path):
    code, head, found = checked(kind, capsys, tmp_path, hidden="{choice: [16]}")
    assert code == 0
    assert head.startswith(f"{kind.__name__} hidden=16: ")
    assert found == dict.fromkeys(CHECKS, "ok")


def test_a_section_that_is_wrong_is_one_line_with_its_place(tmp_path, capsys):
    file = tmp_path / "model.yaml"
    for text, line in (
        (
            "model:\n  class: nopkg.x:Y\n",
            "model.yaml:2: model.class: 'nopkg.x:Y' no package 'nopkg'",
        ),
        ("model: {family: bert, width: 63, dpth: 2}\n", "model.yaml:1: model.dpth: unknown key"),
    ):
        file.write_text(text)
        assert main(["check", str(file)]) == 2
        printed = capsys.readouterr().err
        assert line in printed
        assert "validation error" not in printed


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_a_wrong_model_fails_its_check(kind, capsys, tmp_path):
    name, why = WRONG[kind]
    code, _, found = checked(kind, capsys, tmp_path)
    assert code == 2
    assert next(check for check, problem in found.items() if problem != "ok") == name
    assert re.search(why, found[name])


def test_the_search_refuses_it_in_one_line():
    table = SimpleNamespace(vocabulary_size=SYMBOLS, length=LENGTH)
    for kind in (Right, ReadsPadding):
        member = build("model", section(kind))
        make = partial(member.build, SYMBOLS + 2, SYMBOLS, LENGTH)
        if kind is Right:
            check_module(make, member, table)
            continue
        with pytest.raises(InputError, match=r"^model ReadsPadding: padding: .*`mptune check`"):
            check_module(make, member, table)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"class": "nosuch.models:Mine"}, "no package 'nosuch' in the current folder"),
        ({"class": f"{__name__}:Rihgt"}, "cannot be imported: AttributeError"),
        ({"class": f"{__name__}"}, "should match pattern"),
        ({"class": f"{__name__}:SYMBOLS"}, "its constructor: TypeError"),
        ({"class": "collections:Counter"}, "gives no torch.nn.Module"),
        (section(Right, hiden=8), r"model.hiden: Right has no such argument; .* 'hidden'"),
        (section(Right, hidden=7), "its constructor: AssertionError: embed_dim must be divisible"),
        (
            {"class": "transformers:BertForMaskedLM", "hiden_size": 8},
            r"model.hiden_size: BertConfig has no such argument; .* 'hidden_size'",
        ),
    ],
)
def test_a_wrong_section_is_one_line(given, why):
    with pytest.raises(ValueError if "pattern" in why or "package" in why else InputError) as found:
        build("model", given).parameters(SYMBOLS + 2, LENGTH)
    assert re.search(why, str(found.value))


def test_parameters_and_flops_are_those_of_the_family_that_it_is():
    """BERT as a class has BERT's; computing logits of masked positions only saves the rest."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = {"class": "transformers:BertForMaskedLM", **sizes, "intermediate_size": 128}
    own = build("model", {**bert, "type_vocab_size": 1})
    family = build("model", {"family": "bert", "width": 32, "depth": 2, "heads": 2})
    size = SYMBOLS + 2, LENGTH
    assert own.parameters(*size) == family.parameters(*size)
    every = own.flops(*size, 3, 3 * LENGTH)
    assert every == pytest.approx(family.flops(*size, 3, 3 * LENGTH), rel=0.01)
    assert own.flops(*size, 3, 5) == every
    narrow, wide = (build("model", section(kind)) for kind in (Narrow, Right))
    saved = wide.flops(*size, 3, 5) - narrow.flops(*size, 3, 5)
    # The output layer: 16 channels to all symbols, three products, at all but 5 positions.
    assert saved == pytest.approx(6 * 16 * (SYMBOLS + 2) * (3 * LENGTH - 5))


def test_its_memory_is_that_of_weights_and_optimizer_and_the_rest_is_not_refused():
    member, training = build("model", section(Right, hidden=512)), Training(budget_tokens=1e6)
    sizes = memory.Sizes(family=member, vocabulary=SYMBOLS + 2, length=LENGTH)
    needed = memory.demand(sizes, training, 1)
    assert needed.states == 20 * member.parameters(SYMBOLS + 2, LENGTH)
    memory.check(sizes, training, 1, Device(kind="cuda", bytes=None, words="the device"))
    small = Device(kind="cuda", bytes=needed.states / 2, words="the device")
    with pytest.raises(DoesNotFit, match=r"^Right hidden=512 needs"):
        memory.check(sizes, training, 1, small)


def test_a_dimension_of_classes_is_named_by_the_class(tmp_path):
    spec = tmp_path / "spec.yaml"
    options = "{choice: [{class: %s, hidden: {int: [8, 16]}}, {family: bert}]}"
    spec.write_text(f"model: {options % section(Right)['class']}")
    assert list(SpecFile.read(spec).dimensions) == ["model", "model.Right.hidden"]
