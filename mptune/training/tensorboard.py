"""A trial's progress as TensorBoard files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mptune.trial import Progress


class Board:
    """Writes scalars of progress events; the file appears with the first one."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._writer = folder, None

    def add(self, event: Progress) -> None:
        """One point of every curve, over the optimizer steps."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=k, simple_value=v) for k, v in scalars(event).items()]
        self._open().add_event(Event(step=event.step, summary=Summary(value=values)))

    def close(self) -> None:
        """Write what is left; nothing if there was no event."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> Any:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = self._writer or EventFileWriter(str(self._folder))
        return self._writer


def scalars(event: Progress) -> dict[str, float]:
    """The curves of a progress event, by their TensorBoard tags."""
    found: dict[str, float | None] = {
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "mask_rate": event.mask_rate,
        "gradient_norm": event.gradient_norm,
        "speed/tokens_per_s": event.tokens_per_s,
        "speed/flops_per_s": event.flops_per_s,
        "speed/utilisation": event.utilisation,
    }
    found |= {f"loss_by_rate/{100 * rate:.0f} %": loss for rate, loss in event.loss_by_rate}
    return {tag: value for tag, value in found.items() if value is not None}
