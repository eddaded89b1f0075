"""`compress`: make a smaller model on this machine, without a service. The command `replaceme compress` calls this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from replaceme_core.local.evaluate import Measured
from replaceme_core.local.inputs import Text, admit, named_texts, validated
from replaceme_core.local.run import Machine, ShowProgress, check_absent, show_nothing
from replaceme_core.request.admission import resolve_texts
from replaceme_core.request.gate import GateResult, rejection_in
from replaceme_core.request.removal import check_removal
from replaceme_core.request.resolve import check_inputs
from replaceme_core.request.spec import CompressionRequest, CompressionSpec, ModelRef
from replaceme_core.request.tasks import check_tasks
from replaceme_core.runner.inputs import pin_text
from replaceme_core.runner.messages import Finished
from replaceme_core.settings import Settings
from replaceme_core.shapes import JobWarning

Fields = Mapping[str, object]


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
    warnings: Sequence[JobWarning]
    report: Mapping[str, object]

    @classmethod
    def of(
        cls, finished: Finished, *, spec: CompressionSpec, directory: Path, warnings: Sequence[JobWarning] = ()
    ) -> Self:
        """From the final message of a run of `spec`; `warnings` come before its own."""
        report = finished.report
        sides = (report.get(side) for side in ("before", "after"))
        before, after = (None if row is None else Measured.model_validate(row) for row in sides)
        rows = report.get("warnings")
        return cls(
            directory=directory,
            model=spec.model,
            removed_blocks=tuple(finished.removed_blocks),
            kept_blocks=tuple(finished.kept_blocks),
            method=str(report.get("chosen_method", report.get("method"))),
            before=before,
            after=after,
            gate=GateResult.in_report(report),
            rejection=None if spec.gate is None else rejection_in(report),
            warnings=[*warnings, *(JobWarning.model_validate(row) for row in (rows if isinstance(rows, list) else []))],
            report=report,
        )


def compress(
    model: str | Path,
    *,
    out: str | Path,
    calibration: Text | Sequence[Text],
    ratio: float | Fields | None = None,
    drop: Sequence[int] | None = None,
    method: str | Fields | None = None,
    heal: Mapping[str, Any] | None = None,
    evaluation: Fields | None = None,
    gate: Fields | None = None,
    compute: Fields | None = None,
    tasks_directory: str | Path | None = None,
    cache: str | Path | None = None,
    settings: Settings | None = None,
    on_progress: ShowProgress = show_nothing,
) -> Outcome:
    """Compress `model`, a directory or `org/name[@revision]` on the Hub, into the new directory `out`.

    `calibration` is a built-in text, a .txt or .jsonl file, a data set on the Hub as org/name, one of these with its
    options, or several. It, `ratio`, `drop`, `method`, `heal`, `evaluation`, `gate` and `compute` are the fields of
    `POST /jobs`. `tasks_directory` holds the data of tasks, `cache` what later calls on the same model can use.
    `settings` are by default those of the environment: the Hub, its token, the sandbox.

    The model runs in a process of its own, confined as in a worker, and `on_progress` is called in this thread. A
    result that misses its gate is returned with a `rejection`.

    Raises `InvalidInput` for what is wrong in the call, `AccessDenied` and `HubUnreachable` for the Hub, and any other
    error of `replaceme_core.errors` with which the run fails; then `out` does not exist.
    """
    trains = heal is not None
    machine = Machine(settings, command="compress --heal-tokens" if trains else "compress", trains=trains)
    out = Path(out).expanduser()
    texts, healing, paths = named_texts(calibration, None if heal is None else heal.get("dataset"))
    heal = heal if healing is None else {**(heal or {}), "dataset": healing}
    given = {"heal": heal, "method": method, "evaluation": evaluation, "gate": gate, "compute": compute}
    spec = validated(
        CompressionRequest,
        {
            "model": "local/model",  # until it is admitted
            "ratio": ratio,
            "drop": None if drop is None else list(drop),
            "calibration": texts,
            **{name: value for name, value in given.items() if value is not None},
        },
    ).to_spec()
    check_absent(out)
    check_tasks(spec.evaluation.tasks, tasks_directory)
    source = admit(model, machine.hub)
    check_removal(spec, source.outline)
    check_inputs(spec, source.outline)
    pinned, healed, _ = resolve_texts(spec.calibration, spec.heal, machine.hub, find_file=paths.__getitem__)
    spec = spec.model_copy(update={"model": source.ref, "calibration": pinned, "heal": healed})
    snapshot = source.files.snapshot
    files = (source.files, *(pin_text(one, machine.hub, paths.__getitem__) for one in spec.texts))
    finished = machine.make(
        spec,
        files,
        out=out,
        show=on_progress,
        blocks=source.outline.blocks,
        hub=None if snapshot is None else machine.settings.hub_address,
        tasks_directory=tasks_directory,
        cache_directory=cache,
        cache_bytes=machine.settings.statistics_cache_bytes,
    )
    warnings = []
    if snapshot is not None and snapshot.gated:
        gated = f"{source.name} is gated: those who made it set conditions for its use, which hold for the result too"
        warnings.append(JobWarning(code="gated", message=gated))
    return Outcome.of(finished, spec=spec, directory=out, warnings=warnings)
