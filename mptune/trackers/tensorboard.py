"""TensorBoard: files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import PrivateAttr

from mptune.trackers.base import Axis, Group, Scalar, TrackedRun, Tracker


class TensorBoard(Tracker):
    """Curves of every trial in RUN_DIR/tensorboard, for `tensorboard --logdir`.

    Source: https://www.tensorflow.org/tensorboard
    """

    PACKAGE: ClassVar[str] = "tensorboard"

    kind: Literal["tensorboard"] = "tensorboard"
    _folder: Path = PrivateAttr()
    _writers: dict[str, Any] = PrivateAttr(default_factory=dict)

    def start(self, group: Group) -> None:
        """Nothing to connect to."""
        self._folder = group.folder / "tensorboard"

    def trial(self, run: TrackedRun) -> None:
        """A folder for each run."""
        self._write_text(run, "config", run.config)

    def event(self, run: TrackedRun, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """One scalar per value; numbers of masked positions take the place of steps."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(run, Summary(value=points), at)

    def verdict(self, run: TrackedRun, state: str, summary: Mapping[str, Scalar]) -> None:
        """A table as text; numbers as scalars, too, to sort and to compare by."""
        self._write_text(run, "verdict", {"state": state, **summary})
        numbers = {k: float(v) for k, v in summary.items() if not isinstance(v, str)}
        self.event(run, "step", 0, numbers)
        self._writers.pop(run.key).close()

    def end(self) -> None:
        """Close all files."""
        while self._writers:
            self._writers.popitem()[1].close()

    def _add(self, run: TrackedRun, summary: Any, step: int) -> None:
        import time

        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if run.key not in self._writers:
            self._writers[run.key] = EventFileWriter(str(self._folder / run.key))
        self._writers[run.key].add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _write_text(self, run: TrackedRun, tag: str, values: Mapping[str, Scalar]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        text = f"{run.title}\n\n| | |\n|---|---|\n{rows}"
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        value = Summary.Value(tag=f"{tag}/text_summary", metadata=kind, tensor=tensor)
        self._add(run, Summary(value=[value]), 0)
