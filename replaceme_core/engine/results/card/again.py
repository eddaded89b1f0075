"""What makes a result again, as a person would write it: the body of a request, or a command."""

import json
import shlex

from replaceme_core.request.calibration import CalibrationSource, CalibrationSpec, MixedSource
from replaceme_core.request.fields import FILE_PREFIX
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.request.spec import ComputeSpec

_OWN = ("revision", "config", "split", "column", "template")
_NOT_DECIDING = {"labels", "output", "priority", "max_queue_seconds", "max_runtime_seconds"}


def as_request(spec: ResolvedSpec) -> str:
    """The body of `POST /jobs`; what is at its default and decides nothing is left out."""
    body = spec.model_dump(mode="json", exclude=_NOT_DECIDING, exclude_none=True)
    defaults = ComputeSpec().model_dump(mode="json")
    body["compute"] = {name: value for name, value in body["compute"].items() if value != defaults[name]}
    for part in ("calibration", "method", "evaluation"):
        fields = type(getattr(spec, part)).model_fields
        given = getattr(spec, part)
        body[part] = {name: body[part][name] for name in body[part] if getattr(given, name) != fields[name].default}
        if not body[part]:
            del body[part]
    return json.dumps(body, indent=2)


def as_command(spec: ResolvedSpec) -> str:
    """The call of `replaceme compress`, for a model in a directory."""
    method, compute, text = spec.method, spec.compute, spec.calibration
    options: list[tuple[str, object]] = [("ratio", spec.ratio)]
    if spec.drop is not None:
        options.append(("drop", ",".join(map(str, spec.drop))))
    options += [("method", method.name), *_texts(text)]
    options += [("samples", text.samples), ("max-length", text.max_length), ("seed", text.seed)]
    fields = type(method).model_fields
    named = {"ridge", "replays", "groups", "loss", "structure", "selection", "ridge_later"}
    options += [
        (name.replace("_", "-"), getattr(method, name))
        for name in sorted(named)
        if getattr(method, name) != fields[name].default
    ]
    options.append(("time-budget", method.time_budget_seconds))
    asked = spec.evaluation
    if asked.samples != type(asked).model_fields["samples"].default:
        options.append(("evaluation-samples", asked.samples))
    if asked.tasks:
        options += [("tasks", ",".join(asked.tasks)), ("tasks-dir", "TASKS_DIR")]
        options += [("task-limit", asked.task_limit), ("few-shot", asked.few_shot)]
    options += [("gate", criterion) for criterion in _gate(spec)]
    options += [("device", compute.device), ("dtype", compute.dtype), ("threads", compute.threads)]
    options += [("batch-size", compute.batch_size), ("quantization", compute.quantization)]
    options.append(("loading", compute.loading))
    flags = [
        *(["as-published"] if method.as_published else []),
        *(["pattern-safe"] if compute.pattern_safe else []),
        *([] if spec.evaluation.enabled else ["no-evaluate"]),
    ]
    parts = [f"--{name} {shlex.quote(str(value))}" for name, value in options if value is not None]
    return " \\\n  ".join(["replaceme compress MODEL_DIR --out OUT", *parts, *(f"--{flag}" for flag in flags)])


def _texts(text: CalibrationSpec) -> list[tuple[str, object]]:
    beside: list[tuple[str, object]] = [("repeated", text.repeated), ("judged-on", text.judged_on)]
    if text.sources is None:
        shares = [("self-generated", text.self_generated), ("general", text.general)]
        return [("calibration", _named(text.mix[0])), *shares, *beside]
    given = text.mix[: len(text.sources)]
    options: list[tuple[str, object]] = [("calibration", _named(source, share=source.share)) for source in given]
    return [*options, *beside]


def _named(source: MixedSource, *, share: float | None = None) -> str:
    """As one value of `--calibration`: NAME, NAME=SHARE, or JSON where the source has options of its own."""
    name = source.name.removeprefix(FILE_PREFIX)
    fields = CalibrationSource.model_fields
    own = {one: getattr(source, one) for one in _OWN if getattr(source, one) != fields[one].default}
    if own:
        return json.dumps({"dataset": name, **own, **({} if share is None else {"share": share})})
    return name if share is None else f"{name}={share:.6g}"


def _gate(spec: ResolvedSpec) -> list[str]:
    """Each limit, such as "perplexity_ratio<=1.6"."""
    criteria = {} if spec.gate is None else spec.gate.criteria
    signs = (("min", ">="), ("max", "<="))
    return [
        f"{name}{sign}{limit}"
        for name, limits in criteria.items()
        for bound, sign in signs
        if (limit := getattr(limits, bound)) is not None
    ]
