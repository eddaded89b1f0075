"""What a call on this machine returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from replaceme_core.request.gate import GateResult
from replaceme_core.request.spec import CompressionSpec, ModelRef
from replaceme_core.runner.messages import Finished


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model on text that calibration did not see: `perplexity` over `tokens` predictions, size and speed.

    `parameters` count tied ones once, `bytes` are those of the weights on disk.
    """

    perplexity: float
    tokens: int
    parameters: int
    bytes: int
    tokens_per_second: float
    dtype: str
    blocks: int


@dataclass(frozen=True, kw_only=True)
class OutcomeWarning:
    """What to know before the result is used, although the run succeeded: `code` is for programs."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A compressed model in `directory`. `model` is the source, at its commit where it is on the Hub.

    `method` is the one that was carried out, also where the request left it open. `before` and `after` are `None`
    without an evaluation. `gate` has every criterion with its value; `None`: there is no gate. `rejection` says why the
    result misses its gate; it is in `directory` all the same. `report` is the content of `replaceme.json`.
    """

    directory: Path
    model: ModelRef
    removed_blocks: Sequence[int]
    kept_blocks: Sequence[int]
    method: str
    before: Measured | None
    after: Measured | None
    gate: GateResult | None
    rejection: str | None
    warnings: Sequence[OutcomeWarning]
    report: Mapping[str, object]

    @classmethod
    def of(
        cls, finished: Finished, spec: CompressionSpec, *, directory: Path, warnings: Sequence[OutcomeWarning]
    ) -> "Outcome":
        """`finished` is the result of `spec`; `warnings` are about its inputs."""
        report = finished.report
        gate = GateResult.in_report(report)
        found = report.get("warnings")
        return cls(
            directory=directory,
            model=spec.model,
            removed_blocks=tuple(finished.removed_blocks),
            kept_blocks=tuple(finished.kept_blocks),
            method=str(report.get("chosen_method", report.get("method"))),
            before=_measured(report.get("before")),
            after=_measured(report.get("after")),
            gate=gate,
            rejection=None if spec.gate is None else _rejection(gate),
            warnings=(*warnings, *_WARNINGS.validate_python(found or ())),
            report=report,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model as it was named, with the commit where it is on the Hub. `report` has all measurements of it."""

    name: str
    revision: str | None
    measured: Measured
    report: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Models measured side by side on `text`. `hardware` and `threads` are what their speed belongs to."""

    models: Sequence[EvaluatedModel]
    text: str
    hardware: str
    threads: int


_MEASURED = TypeAdapter(Measured)
_WARNINGS = TypeAdapter(list[OutcomeWarning])


def measured_of(row: object) -> Measured:
    """The measurements in a row of a report."""
    return _MEASURED.validate_python(row)


def _measured(row: object) -> Measured | None:
    return None if row is None else measured_of(row)


def _rejection(gate: GateResult | None) -> str | None:
    """Why the result is rejected; `None` where it is not."""
    if gate is None:
        return "the runner did not judge the gate"
    return None if gate.passed else str(gate)
