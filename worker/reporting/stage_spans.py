"""A span for each stage of an attempt. The runner, which has no network, knows nothing of them."""

from types import TracebackType
from typing import Self

from opentelemetry.trace import Span

from replaceme_core.runner.messages import Stage
from replaceme_core.telemetry import mark_failed, start_span


class StageSpans:
    """The stages of one attempt, one after the other. As a context manager it ends the last one."""

    def __init__(self) -> None:
        self._span: Span | None = None

    def begin(self, stage: Stage) -> None:
        """A stage begins, and the one before it has ended."""
        self._end()
        self._span = start_span(f"stage {stage}", attributes={"replaceme.stage": stage.value})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span is not None and kind is not None:
            mark_failed(self._span, kind.__name__)
        self._end()

    def _end(self) -> None:
        if self._span is not None:
            self._span.end()
            self._span = None
