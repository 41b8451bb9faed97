"""What others hold of a shared cluster: admission plans around it.

Pure: from what the nodes are, what Ray says is unused of them and what our own gangs hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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

    def held(self) -> list[Held]:
        """For admission: gangs of no name that end nobody knows when."""
        return [
            Held(f"others on {node}", Shape(1, *amount), (node,), idle=False, ours=False)
            for node, amount in self._now.items()
            if any(amount)
        ]

    def lasting(self) -> list[Shape]:
        """What they held the last two times: not what only seemed so while a gang came or went."""
        both = ((a, self._before.get(node, NONE)) for node, a in self._now.items())
        amounts = ((min(a[0], b[0]), min(a[1], b[1])) for a, b in both)
        return [Shape(1, *amount) for amount in amounts if any(amount)]


def _without(node: Node, gang: Held, ranks: int) -> Node:
    return Node(node.id, node.cpus - ranks * gang.shape.cpus, node.gpus - ranks * gang.shape.gpus)


def _between(left: Node, unused: Node) -> Amount:
    """What is neither ours nor unused."""
    cpus, gpus = left.cpus - unused.cpus, left.gpus - unused.gpus
    return (cpus if cpus > EPSILON else 0.0, gpus if gpus > EPSILON else 0.0)
