"""What the machines of a cluster have: each says so once, to a task that takes nothing of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mptune.dispatch import devices
from mptune.dispatch.devices import Gpu, Machine

ANSWER_TIMEOUT_S = 30.0
"""For the first nodes to say what they have: a worker process starts there and imports this."""


@dataclass
class Census:
    """Waits for the nodes that it is asked about first, and for none that joins later."""

    _named: dict[str, tuple[Gpu, ...]] = field(default_factory=dict)
    _asked: dict[str, Any] = field(default_factory=dict)
    _said: dict[str, Machine] = field(default_factory=dict)

    def known(self, nodes: Sequence[str]) -> dict[str, Machine]:
        """Memory and GPUs of these nodes.

        One that has not answered yet is known by the kind of accelerator that Ray names, else it
        is left out; one that cannot answer is a machine of which nothing is known.
        """
        first = not self._named
        if new := [node for node in nodes if node not in self._named]:
            self._ask(new)
        if self._asked:
            self._hear(ANSWER_TIMEOUT_S if first else 0.0)
        yet = {node: Machine(gpus=gpus) for node, gpus in self._named.items() if gpus}
        known = yet | self._said
        return {node: known[node] for node in nodes if node in known}

    def _ask(self, nodes: Iterable[str]) -> None:
        alive = ray.nodes()  # type: ignore[no-untyped-call]
        named = {node["NodeID"]: devices.of_accelerator(node["Resources"]) for node in alive}
        for node in nodes:
            self._named[node] = named.get(node, ())
            self._asked[node] = ask(node)

    def _hear(self, wait_s: float) -> None:
        refs = list(self._asked.values())
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=wait_s)
        for node in [node for node, ref in self._asked.items() if ref in ready]:
            self._said[node] = completed(_answer(self._asked.pop(node)), self._named[node])


@ray.remote(num_cpus=0, max_retries=0)
def _machine() -> str:
    return devices.this_machine().as_json()


def ask(node: str) -> Any:
    """A reference to what this node has, as JSON."""
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return _machine.options(scheduling_strategy=here).remote()


def _answer(ref: Any) -> Machine | None:
    """None from a node that cannot say: it has left, or another version is installed there."""
    with suppress(RayError):
        return Machine.from_json(ray.get(ref))
    return None


def completed(said: Machine | None, named: tuple[Gpu, ...]) -> Machine:
    """What a node has said, with the GPUs that Ray names where it has named none itself."""
    found = said or Machine()
    return found if found.gpus else replace(found, gpus=named)
