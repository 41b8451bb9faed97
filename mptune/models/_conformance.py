"""Whether a module does what `MaskedModel.build` says, checked on a few small batches.

Shape suffixes: B sequences (2), D positions, K masked positions in row-major order, V predictable
symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mptune.errors import one_line

CHANGED = 1e-5
"""Logits differ if they do by more than this share of their standard deviation."""

NOISE = 0.02
"""Standard deviation of what is added to all weights: some models begin with an output of 0."""


@dataclass
class Subject:
    """A module, and what it is called with.

    Attributes:
        build: makes the module; random weights are from torch's global generator.
        predictable: V; the ids after it are [MASK] and padding.
    """

    build: Callable[[], nn.Module]
    predictable: int
    length: int

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.module = nn.Module()
        self.masked_D = torch.arange(self.length) % 3 == 0
        self.flat_K = self.masked_D.repeat(2).nonzero()[:, 0]

    def tokens(self) -> Tensor:
        """Random symbols [B, D] without [MASK]."""
        return torch.randint(self.predictable, (2, self.length), generator=self.random)

    def logits(self, tokens_BD: Tensor, attend_BD: Tensor | None = None) -> Tensor:
        """[K, V] at the masked positions of both sequences, whose tokens are hidden."""
        hidden_BD = tokens_BD.masked_fill(self.masked_D, self.predictable)
        with torch.no_grad():
            found: Tensor = self.module.eval()(hidden_BD, self.flat_K, attend_BD)
        return found

    def attended(self) -> Tensor:
        """bool [B, D]: the last quarter of each sequence is padding."""
        place_D = torch.arange(self.length)
        return (place_D < self.length - max(1, self.length // 4)).repeat(2, 1)


def _constructor(subject: Subject) -> str | None:
    sums = []
    for _ in range(2):
        subject.module = nn.Module()  # frees the first one before there is another
        torch.manual_seed(0)
        subject.module = subject.build()
        sums.append([float(p.detach().double().sum()) for p in subject.module.parameters()])
    if not sums[0]:
        return "has no parameters"
    # NaN differs from itself, and is reported with the logits.
    if [repr(a) for a in sums[0]] != [repr(a) for a in sums[1]]:
        return "gives other weights with the same seed of torch; draw them from torch's generator"
    return None


def _shape(subject: Subject) -> str | None:
    tokens_BD, wanted = subject.tokens(), [len(subject.flat_K), subject.predictable]
    attend_BD = torch.ones_like(tokens_BD, dtype=torch.bool)
    for given in (None, attend_BD):
        found = list(subject.logits(tokens_BD, given).shape)
        if found != wanted:
            return f"logits are {found}; they must be {wanted}, at the masked positions"
    return None


def _numbers(subject: Subject) -> str | None:
    logits_KV = subject.logits(subject.tokens())
    if not logits_KV.dtype.is_floating_point:
        return f"logits are {logits_KV.dtype}"
    if not bool(logits_KV.isfinite().all()):
        return "logits are not finite with the initial weights"
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in subject.module.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    return None


def _context(subject: Subject) -> str | None:
    tokens_BD = subject.tokens()
    if not _differ(subject.logits(tokens_BD), subject.logits(subject.tokens())):
        return "logits of masked positions are the same whatever the other tokens are"
    return None


def _leak(subject: Subject) -> str | None:
    tokens_BD, shown_BD = subject.tokens(), subject.tokens()
    first = int(subject.masked_D.sum())
    before_KV = subject.logits(tokens_BD)
    with torch.no_grad():
        subject.module(shown_BD, subject.flat_K, None)
    if _differ(before_KV, subject.logits(tokens_BD)):
        return "logits depend on an earlier call"
    # Another sequence of the batch shows what the first one hides.
    for shown in (tokens_BD[0], shown_BD[0]):
        both_BD = torch.where(subject.masked_D, subject.predictable, tokens_BD)
        both_BD[1] = shown
        with torch.no_grad():
            found_KV = subject.module(both_BD, subject.flat_K, None)
        if _differ(before_KV[:first], found_KV[:first]):
            return "logits depend on the other sequences of the batch"
    return None


def _padding(subject: Subject) -> str | None:
    attend_BD, tokens_BD = subject.attended(), subject.tokens()
    if bool((~attend_BD).all()):
        return None
    kept_K = attend_BD.flatten()[subject.flat_K]
    found = [
        subject.logits(torch.where(attend_BD, tokens_BD, other), attend_BD)[kept_K]
        for other in (subject.predictable + 1, subject.tokens())
    ]
    if not bool(found[0].isfinite().all()):
        return "logits are not finite where a sequence has padding"
    if _differ(*found):
        return "logits depend on tokens where the attention mask is 0"
    return None


def _repeats(subject: Subject) -> str | None:
    tokens_BD = subject.tokens()
    # One that remembers its last call repeats itself from the second on; that is a leak.
    _, *evaluated = (subject.logits(tokens_BD) for _ in range(3))
    if _differ(*evaluated):
        return "two calls in eval mode give other logits"
    found = []
    for _ in range(3):
        torch.manual_seed(2)
        with torch.no_grad():
            found.append(subject.module.train()(tokens_BD, subject.flat_K, None))
    if _differ(*found[1:]):
        return "two calls in train mode with the same seed of torch give other logits"
    return None


def _gradient(subject: Subject) -> str | None:
    logits_KV = subject.module.eval()(subject.tokens(), subject.flat_K, None)
    logits_KV.float().log_softmax(1)[:, 0].sum().backward()
    for name, parameter in subject.module.named_parameters():
        gradient = parameter.grad
        if parameter.requires_grad and (gradient is None or not bool((gradient != 0).any())):
            return f"{name.removeprefix('model.')} gets none: no loss will change it"
        if gradient is not None and not bool(gradient.isfinite().all()):
            return f"that of {name.removeprefix('model.')} is not finite"
    return None


def _state(subject: Subject) -> str | None:
    tokens_BD = subject.tokens()
    before_KV, state = subject.logits(tokens_BD), subject.module.state_dict()
    torch.manual_seed(3)
    subject.module = subject.build()
    subject.module.load_state_dict(state)
    if _differ(before_KV, subject.logits(tokens_BD)):
        return "a new instance with the same state_dict gives other logits"
    return None


def _differ(one: Tensor, other: Tensor) -> bool:
    spread = torch.nan_to_num(one.float().std())
    return not bool(((one - other).abs() <= CHANGED * spread).all())


CHECKS: dict[str, Callable[[Subject], str | None]] = {
    "constructor": _constructor,
    "shape": _shape,
    "numbers": _numbers,
    "repeats": _repeats,
    "context": _context,
    "leak": _leak,
    "padding": _padding,
    "gradient": _gradient,
    "state": _state,
}
"""Each returns what is wrong, in words, or None. They run in this order."""

FIRST = ("constructor", "shape", "numbers", "repeats")
"""Without these the other checks say nothing."""

BEFORE_TRAINING = (*FIRST, "context", "leak", "padding")
"""The checks without a backward pass and a second copy of the weights."""


def conformance(
    build: Callable[[], nn.Module], predictable: int, length: int, names: Iterable[str] = CHECKS
) -> Iterator[tuple[str, str | None]]:
    """Check a module: (name of a check, what is wrong or None), until nothing more can be said.

    Changes the state of torch's global generator.
    """
    subject = Subject(build, predictable, length)
    for name in names:
        try:
            problem = CHECKS[name](subject)
        except Exception as error:  # of the user's code
            problem = one_line(error)
        yield name, problem
        if problem is not None and name in FIRST:
            return
