"""`heal`: train the result of an earlier job toward its original, without removing anything again.

The command `replaceme heal` calls this.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from replaceme_core.errors import InvalidInput
from replaceme_core.local.compress import Outcome
from replaceme_core.local.inputs import named_texts, outline_of, validated
from replaceme_core.local.reproduce import pin_model, pin_texts, read_recorded
from replaceme_core.local.run import Machine, ShowProgress, check_absent, show_nothing
from replaceme_core.report.reading import Report
from replaceme_core.request.admission import resolve_texts
from replaceme_core.request.method import Method
from replaceme_core.request.resolve import check_inputs
from replaceme_core.request.spec import EvaluationSpec, HealSpec, Loading
from replaceme_core.runner.inputs import pin_text
from replaceme_core.settings import Settings


def heal(
    result: str | Path,
    *,
    out: str | Path,
    heal: Mapping[str, Any],
    teacher: Path | None = None,
    texts: Sequence[Path] = (),
    revision: str | None = None,
    device: str | None = None,
    settings: Settings | None = None,
    on_progress: ShowProgress = show_nothing,
) -> Outcome:
    """Train `result`, a directory or a repository of the Hub, into the new directory `out`; it has a `replaceme.json`.

    `heal` is the field of `POST /jobs`. `teacher` is the directory of the original, by default the recorded revision on
    the Hub; `texts` are those of the calibration that were files, in their order. Raises as `compress` does.
    """
    machine, out = Machine(settings, command="heal", trains=True), Path(out).expanduser()
    check_absent(out)
    _, named, paths = named_texts("builtin:general", heal.get("dataset"))
    asked = validated(HealSpec, heal if named is None else {**heal, "dataset": named})
    with read_recorded(str(result), revision=revision, hub=machine.hub) as recorded:
        removed = recorded.report.get("removed_blocks")
        if not (isinstance(removed, list) and removed) or Report(recorded.report).is_true("healing", "is_kept"):
            raise InvalidInput(f"{result} was trained already, or does not say which blocks are gone", field="result")
        recorded.check_result()
        before, chosen = recorded.spec, recorded.report.get("chosen_method")
        _, found, _ = resolve_texts(before.calibration, asked, machine.hub, find_file=paths.get)
        method = before.method.model_copy(update={"groups": 1})  # of named blocks there are none
        # not how this machine's memory made the result read: where it was block by block, the model may fit here
        compute = before.compute.model_copy(update={"loading": Loading.AUTO, "device": device or before.compute.device})
        evaluation = EvaluationSpec(samples=before.evaluation.samples)
        changes = {"ratio": None, "drop": tuple(removed), "method": method, "compute": compute, "heal": found}
        spec = before.model_copy(update={**changes, "evaluation": evaluation})
        check_inputs(spec, outline_of(recorded.directory))
        model = pin_model(spec, given=teacher, hub=machine.hub, option="--teacher")
        files = (model, *pin_texts(before, given=texts, hub=machine.hub))
        if found is not None and found.source is not None:
            files = (*files, pin_text(found.source, machine.hub, paths.__getitem__))
        finished = machine.make(
            spec,
            files,
            out=out,
            show=on_progress,
            check=recorded.check_model,
            check_texts=recorded.check_texts,
            pruned_directory=recorded.directory,
            pruned_by=chosen if chosen in tuple(Method) else None,
        )
    return Outcome.of(finished, spec=spec, directory=out)
