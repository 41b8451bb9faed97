"""Every family that is found, built small: its count, its head, its promises about masks."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM

from mptune import plugins
from mptune.models import _masked
from mptune.spec.schema import MODEL_KEYS, build

FAMILIES = [name for name in plugins.modules("families") if name not in MODEL_KEYS]
SYMBOLS, LENGTH = 18, 16
VOCABULARY = SYMBOLS + 2
CASES = [
    pytest.param(example, id=f"{name}-{i}")
    for name in FAMILIES
    for i, example in enumerate(plugins.load("families", name).examples())
]


def made(family):
    torch.manual_seed(0)
    return family.build(VOCABULARY, SYMBOLS, LENGTH).eval()


def batch():
    generator = torch.Generator().manual_seed(1)
    tokens_BD = torch.randint(0, SYMBOLS, (4, LENGTH), generator=generator)
    mask_BD = torch.rand(4, LENGTH, generator=generator) < 0.4
    return torch.where(mask_BD, SYMBOLS, tokens_BD), mask_BD


@pytest.mark.parametrize("family", CASES)
def test_parameters_in_closed_form(family):
    counted = sum(p.numel() for p in made(family).parameters())
    assert family.parameters(VOCABULARY, LENGTH) == counted


@pytest.mark.parametrize("family", CASES)
def test_every_parameter_is_trained(family):
    module, (tokens_BD, mask_BD) = made(family), batch()
    module(tokens_BD, mask_BD).logsumexp(-1).sum().backward()
    idle = [name for name, p in module.named_parameters() if p.grad is None]
    assert not idle


def kept_bytes(family, half):
    """Bytes that a forward keeps for the backward pass, weights apart."""
    module, (tokens_BD, mask_BD) = made(family).train(), batch()
    module = module.bfloat16() if half else module
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(tokens_BD, mask_BD)
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_block_keeps_for_its_backward_pass(name, half, monkeypatch):
    monkeypatch.setattr(_masked, "LONGEST_PLAIN", 0)
    two, four = (build("model", {"family": name, "depth": depth}) for depth in (2, 4))
    each = (kept_bytes(four, half) - kept_bytes(two, half)) / 2
    expected = two.kept_per_channel * 4 * LENGTH * two.width * (2 if half else 4)
    assert 0.85 * expected < each < 1.03 * expected


@pytest.mark.parametrize("family", CASES)
def test_logits_are_those_of_the_masked_positions(family):
    module, (tokens_BD, mask_BD) = made(family), batch()
    everywhere_BDV = module(tokens_BD, torch.ones_like(mask_BD)).view(4, LENGTH, SYMBOLS)
    torch.testing.assert_close(
        module(tokens_BD, mask_BD), everywhere_BDV[mask_BD], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("family", CASES)
def test_logits_are_those_of_the_library_s_own_model(family, tmp_path):
    """Which computes all of every block for all positions."""
    module, (tokens_BD, mask_BD) = made(family), batch()
    module.save_pretrained(str(tmp_path))
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    place_BD = torch.arange(LENGTH)[None]
    logits_BDV = plain(tokens_BD, position_ids=place_BD).logits[:, :, :SYMBOLS]
    torch.testing.assert_close(
        module(tokens_BD, mask_BD), logits_BDV[mask_BD], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("family", CASES)
def test_checkpointed_activations_give_the_same_gradients(family):
    tokens_BD, mask_BD = batch()
    gradients = []
    for checkpointed in (False, True):
        module = made(family).train()
        if checkpointed:
            module.checkpoint_activations()
        module(tokens_BD, mask_BD).logsumexp(-1).sum().backward()
        gradients.append([p.grad for p in module.parameters()])
    for kept, computed_again in zip(*gradients, strict=True):
        torch.testing.assert_close(kept, computed_again)


@pytest.mark.parametrize("family", CASES)
def test_mask_and_padding_cannot_be_predicted(family):
    module, (tokens_BD, mask_BD) = made(family), batch()
    assert module(tokens_BD, mask_BD).shape == (int(mask_BD.sum()), SYMBOLS)


@pytest.mark.parametrize("family", CASES)
def test_what_is_not_attended_to_does_not_matter(family):
    module, (tokens_BD, mask_BD) = made(family), batch()
    attend_BD = torch.ones_like(mask_BD)
    attend_BD[:, -5:] = False
    mask_BD &= attend_BD
    other_BD = torch.where(attend_BD, tokens_BD, VOCABULARY - 1)
    same = module(tokens_BD, mask_BD, attend_BD)
    torch.testing.assert_close(module(other_BD, mask_BD, attend_BD), same)
    assert not torch.allclose(module(other_BD, mask_BD), same)


@pytest.mark.parametrize("family", CASES)
def test_positions_matter(family):
    module, (tokens_BD, mask_BD) = made(family), batch()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)  # attention is faint at first
    turned = module(tokens_BD.flip(1), mask_BD.flip(1))
    assert not torch.allclose(turned.sort(0)[0], module(tokens_BD, mask_BD).sort(0)[0], atol=1e-5)


@pytest.mark.parametrize("family", CASES)
def test_the_seed_decides_the_initial_weights(family):
    first, again = made(family).state_dict(), made(family).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("family", CASES)
def test_flops_grow_with_everything(family):
    here = family.flops(VOCABULARY, LENGTH, 4, 10)
    assert here > 0
    assert family.flops(VOCABULARY, LENGTH, 8, 20) == pytest.approx(2 * here)
    assert family.flops(VOCABULARY, 2 * LENGTH, 4, 10) > 2 * family.flops(VOCABULARY, LENGTH, 4, 5)
    for more in ((2 * VOCABULARY, LENGTH, 4, 10), (VOCABULARY, LENGTH, 4, 11)):
        assert family.flops(*more) > here
    for field in ("width", "depth"):
        larger = family.model_copy(update={field: 2 * getattr(family, field)})
        assert larger.flops(VOCABULARY, LENGTH, 4, 10) > here


@pytest.mark.parametrize("family", CASES)
def test_its_section_builds_it_again(family):
    assert build("model", family.model_dump()) == family
    assert family.words() == f"{family.family} {family.width}×{family.depth}"


@pytest.mark.parametrize("family", CASES)
def test_flops_are_those_that_torch_counts(family):
    """Exactly, where attention is computed by plain matrix products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    module, (tokens_BD, mask_BD) = made(family).train(), batch()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(tokens_BD, mask_BD).logsumexp(-1).sum().backward()

    expected = family.flops(VOCABULARY, LENGTH, 4, int(mask_BD.sum()))
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize(
    ("family", "size", "vocabulary", "words"),
    [
        ("bert", "110M", 30524, "bert 768×12"),
        ("roberta", 125e6, 50267, "roberta 768×12"),
        ("esm", "8M", 33, None),
        ("modernbert", "150m", 50370, None),
    ],
)
def test_a_size_in_parameters(family, size, vocabulary, words):
    asked = build("model", {"family": family, "size": size})
    found = asked.sized(vocabulary, 512)
    assert found.size is None
    assert found.parameters(vocabulary, 512) == pytest.approx(asked.size, rel=0.03)
    assert 25 < found.width / found.depth < 160
    assert words in (None, found.words())


def test_a_size_names_itself_and_has_one_source():
    assert build("model", {"family": "bert", "size": "1.5M"}).words() == "bert 1.5M"
    with pytest.raises(ValidationError, match="has size and width; give size, or width and depth"):
        build("model", {"family": "bert", "size": "1M", "width": 96})
    with pytest.raises(ValidationError, match=r"is not a size; give parameters, e\.g\. 110M"):
        build("model", {"family": "bert", "size": "base"})
    with pytest.raises(
        ValueError, match="size 20K: the nearest bert with 30000 symbols is bert 32"
    ):
        build("model", {"family": "bert", "size": "20K"}).sized(30000, 128)


def test_default_heads_divide_the_width():
    for width, heads in ((16, 1), (48, 1), (64, 2), (80, 2), (112, 2), (256, 8)):
        assert build("model", {"family": "bert", "width": width}).attention_heads == heads


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(
        ValidationError, match=r"width 64 is not a multiple of heads 3; e\.g\. heads: 2"
    ):
        build("model", {"family": "bert", "width": 64, "heads": 3})


@pytest.mark.parametrize("family", ["esm", "modernbert"])
def test_rotary_positions_need_an_even_width_per_head(family):
    with pytest.raises(ValidationError, match="even width per head; width 33"):
        build("model", {"family": family, "width": 33})


def test_reading_families_does_not_load_torch():
    code = (
        "import sys; from mptune import plugins\n"
        "for n in plugins.modules('families'): plugins.load('families', n).examples()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_on_a_grid_are_told_apart_and_banned_symbols_have_no_probability(family):
    """Without the grid a rotary model could not tell channels of an all-masked row apart."""
    torch.manual_seed(0)
    member = plugins.load("families", family)(family=family, width=32, depth=1)
    module = member.build(10, 8, 6)
    sizes = (8, 3, 5) * 2
    member.lay_out(module, (2, 3), sizes)
    module.eval()
    tokens_BD = torch.full((1, 6), 8)
    with torch.inference_mode():
        logits_KV = module(tokens_BD, torch.ones(1, 6, dtype=torch.bool))
    p_KV = logits_KV.softmax(1)
    for position, size in enumerate(sizes):
        assert p_KV[position, size:].sum() == 0
        assert p_KV[position, :size].sum() == pytest.approx(1, abs=1e-5)
    assert (p_KV[0] - p_KV[3]).abs().max() > 1e-6
    counted = sum(p.numel() for p in module.parameters())
    assert counted == member.parameters(10, 6) + (2 + 3) * 32


def test_a_padded_decoder_gives_the_same_outputs_and_gradients():
    torch.manual_seed(0)
    layer, inputs_KW = torch.nn.Linear(8, 21).double(), torch.randn(5, 8).double()
    found = []
    for tile in (1, 8):
        layer.zero_grad()
        outputs_KV = _masked.first_outputs(layer, 19, inputs_KW, tile)
        outputs_KV.square().sum().backward()
        found.append((outputs_KV, layer.weight.grad.clone(), layer.bias.grad.clone()))
    assert found[0][0].shape == (5, 19)
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(plain, padded)


@pytest.mark.parametrize(("size", "vocabulary"), [("50M", 30524), ("300M", 50370), ("1B", 30524)])
def test_wide_models_are_sized_in_tiles(size, vocabulary):
    member = build("model", {"family": "bert", "size": size}).sized(vocabulary, 512)
    assert member.width >= 512
    assert member.width % 128 == 0
    assert member.width // member.attention_heads == 64
