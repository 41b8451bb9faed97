"""What others hold of a shared cluster: admission plans around it.

Pure: from what the nodes are, what Ray says is unused of them and what our own gangs hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mptune.dispatch.admission import Held
from mptune.dispatch.room import EPSILON, Node, Shape

SHUT_S = 30.0
"""How long a place is thought to be taken that looked free, and then was not."""

Amount = tuple[float, float]
"""CPUs and GPUs."""

NONE: Amount = (0.0, 0.0)


@dataclass
class Tenants:
    """The others on a cluster, looked at again and again. Times are in seconds from any origin."""

    _now: dict[str, Amount] = field(default_factory=dict)
    _before: dict[str, Amount] = field(default_factory=dict)
    _shut: dict[str, float] = field(default_factory=dict)

    def look(
        self, total: Sequence[Node], unused: Mapping[str, Node], ours: Iterable[Held], now: float
    ) -> None:
        """Take in what there is now; `ours` are the gangs that have their place from Ray."""
        self._shut = {node: until for node, until in self._shut.items() if until > now}
        left = {node.id: node for node in total}
        for gang in ours:
            for id_ in left.keys() & set(gang.placement):
                left[id_] = _without(left[id_], gang, gang.placement.count(id_))
        free = {id_: node for id_, node in unused.items() if id_ not in self._shut}
        self._before = self._now
        self._now = {i: _between(n, free.get(i, Node(i, 0))) for i, n in left.items()}

    def shut(self, nodes: Collection[str], now: float) -> None:
        """Somebody unseen is there: from the next look on nothing is planned there for a while."""
        self._shut |= dict.fromkeys(nodes, now + SHUT_S)

    def held(self) -> Iterator[Held]:
        """For admission: gangs that end nobody knows when.

        What was not seen the last time may be what a gang of ours leaves, or has just taken.
        """
        for node, amount in self._now.items():
            stays = _least(amount, self._before.get(node, NONE))
            passes = (amount[0] - stays[0], amount[1] - stays[1])
            for ours, part in ((False, stays), (True, passes)):
                if any(part):
                    name = f"{'passing' if ours else 'others'} on {node}"
                    yield Held(name, Shape(1, *part), (node,), idle=False, ours=ours)

    def lasting(self) -> list[Shape]:
        """What others held the last two times, and not only seemed to."""
        return [held.shape for held in self.held() if not held.ours]


def _least(one: Amount, other: Amount) -> Amount:
    return min(one[0], other[0]), min(one[1], other[1])


def _without(node: Node, gang: Held, ranks: int) -> Node:
    return Node(node.id, node.cpus - ranks * gang.shape.cpus, node.gpus - ranks * gang.shape.gpus)


def _between(left: Node, unused: Node) -> Amount:
    """What is neither ours nor unused."""
    cpus, gpus = left.cpus - unused.cpus, left.gpus - unused.gpus
    return (cpus if cpus > EPSILON else 0.0, gpus if gpus > EPSILON else 0.0)
