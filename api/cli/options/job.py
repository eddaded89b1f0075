"""The options that describe a job, one row for each field of the body of `POST /jobs`, and the body they make.

`submit` and `plan` take them beside a file with such a body. What an option says replaces what the file says.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from api.cli.options import method as of_method
from api.cli.options.calibration import (
    SEVERAL,
    Column,
    Config,
    General,
    JudgedOn,
    MaxLength,
    Repeated,
    Revision,
    Samples,
    SelfGenerated,
    Split,
    calibration_field,
    parse_sources,
)
from api.cli.options.checks import finite
from api.cli.options.gate import Gate, parse_gate
from api.cli.options.labels import parse_labels
from api.cli.options.removal import PATTERN_SAFE_HELP, Drop, Ratio, parse_drop, parse_ratio
from api.cli.options.tasks import FewShot, TaskLimit, Tasks, parse_tasks
from replaceme_core.spec import Dtype, Loading, Quantization


@dataclass(frozen=True, kw_only=True)
class JobOption:
    """An option of the command line: `name` is its parameter, `path` the field that it sets, with dots."""

    name: str
    path: str
    annotation: object
    read: Callable[[Any], object] = lambda value: value


def _option(path: str, kind: Any, help_text: str, *, name: str = "", **more: Any) -> JobOption:
    """An option named after the last part of `path`, or `name`."""
    name = name or path.rpartition(".")[2]
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        flag = more.pop("flag", f"{flag}/--no-{flag.removeprefix('--')}")
    if kind is float:
        more["callback"] = finite
    return JobOption(
        name=name, path=path, annotation=Annotated[kind | None, typer.Option(flag, help=help_text, **more)]
    )


def _annotated(
    path: str, annotation: object, *, name: str = "", read: Callable[[Any], object] | None = None
) -> JobOption:
    name = name or path.rpartition(".")[2]
    found = JobOption(name=name, path=path, annotation=annotation)
    return found if read is None else JobOption(name=name, path=path, annotation=annotation, read=read)


_TEXT = f"Calibration text: builtin:general, file:NAME.txt, or a Hub data set as org/name. {SEVERAL}"
_CALIBRATION, _LABELS = "calibration", "labels"
_ALTERNATIVES = ("ratio", "drop")
_OF_ONE_TEXT = ("dataset", "sources", "revision", "config", "split", "column", "template")
_BESIDE_ONE_TEXT = ("self_generated", "general")
"""Shares of other text beside one text; in a mix they are those of sources."""
_SHORT = {"model": "repo_id", "calibration": "dataset", "method": "name", "output": "repo_id"}
"""The field of the long form for which a plain string is short."""

OPTIONS = (
    _option("model.repo_id", str, "Model to compress, as org/name.", name="model"),
    _option("model.revision", str, "Branch, tag or commit of the model. Default: main."),
    _annotated(
        _CALIBRATION,
        Annotated[list[str] | None, typer.Option("--calibration", metavar="NAME[=SHARE]", help=_TEXT)],
    ),
    _annotated("ratio", Ratio, read=parse_ratio),
    _annotated("drop", Drop, read=parse_drop),
    _annotated("calibration.revision", Revision, name="calibration_revision"),
    _annotated("calibration.config", Config, name="calibration_config"),
    _annotated("calibration.split", Split, name="calibration_split"),
    _annotated("calibration.column", Column, name="calibration_column"),
    _option("calibration.template", str, "Chat template: auto, chat or plain. Default: auto."),
    _annotated("calibration.samples", Samples),
    _annotated("calibration.max_length", MaxLength),
    _option("calibration.seed", int, "Seed for the selection of calibration text. Default: 0."),
    _annotated("calibration.self_generated", SelfGenerated),
    _annotated("calibration.general", General),
    _annotated("calibration.repeated", Repeated),
    _annotated("calibration.judged_on", JudgedOn),
    _option("method.name", str, of_method.METHOD_HELP, name="method"),
    _annotated("method.ridge", of_method.Ridge),
    _annotated("method.replays", of_method.Replays),
    _annotated("method.groups", of_method.Groups),
    _annotated("method.loss", of_method.Loss),
    _annotated("method.structure", of_method.Structure),
    _option("method.as_published", bool, of_method.AS_PUBLISHED_HELP),
    _annotated("method.selection", of_method.SelectionOption),
    _annotated("method.ridge_later", of_method.RidgeLater),
    _annotated("method.time_budget_seconds", of_method.TimeBudget, name="time_budget"),
    _option("evaluation.enabled", bool, "Whether to measure both models. Default: yes.", name="evaluate"),
    _option("evaluation.samples", int, "Sequences to measure on. Default: 16.", name="evaluation_samples"),
    _annotated("evaluation.tasks", Tasks, read=parse_tasks),
    _annotated("evaluation.task_limit", TaskLimit),
    _annotated("evaluation.few_shot", FewShot),
    _annotated("gate", Gate, read=parse_gate),
    _option(
        "output.repo_id",
        str,
        "Repository for the result, as org/name. Default: a private one named after model and job.",
        name="output",
    ),
    _option(
        "output.private",
        bool,
        "Whether the repository is private, if it is new. Default: --private.",
        flag="--private/--public",
    ),
    _option("output.overwrite", bool, "Replace whatever is in the repository, where the operator allows that."),
    _option("output.create_pr", bool, "Propose the result in a pull request on a repository that exists."),
    _option(
        "compute.device",
        str,
        "Device such as cpu or cuda; only workers that have it run the job. Default: the service decides.",
    ),
    _option("compute.dtype", Dtype, "Data type of the computation. Default: what is fast on the device."),
    _option("compute.batch_size", int, "Sequences per batch."),
    _option("compute.threads", int, "Number of CPU threads."),
    _option("compute.loading", Loading, "Load the whole model, or block by block. Default: auto, whole if it fits."),
    _option("compute.quantization", Quantization, "Hold the blocks in 4 or 8 bits while activations are captured."),
    _option(
        "compute.shards",
        int,
        "Number of parts of the calibration, which idle workers share (least_squares and drop only).",
    ),
    _option("compute.pattern_safe", bool, PATTERN_SAFE_HELP),
    _annotated(
        _LABELS,
        Annotated[
            list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Label for the job. Repeatable.")
        ],
        name="label",
        read=parse_labels,
    ),
    _option("priority", int, "Priority from 0 to 9; 9 starts first. Default: 5."),
    _option("max_queue_seconds", float, "Fail the job if it has not started after this many seconds."),
    _option("max_runtime_seconds", float, "Fail the job if it has not ended this many seconds after its start."),
    _option("credential", str, "Name of your credential for the Hub. Default: the service's own tokens."),
    _option("webhook.url", str, "URL that receives the events of this job; its secret is shown once.", name="webhook"),
    _option(
        "webhook.events",
        list[str],
        "Type of event for --webhook. Repeatable. Default: succeeded, failed and cancelled.",
        name="webhook_event",
    ),
    _option("webhook.payload", str, "thin, or full: with the whole job. Default: thin.", name="webhook_payload"),
    _option(
        "webhook.signed_by",
        str,
        "ID of a standing webhook whose secret signs, in place of a new one.",
        name="webhook_signed_by",
    ),
    _option(
        "validate_only",
        bool,
        "Show the plan, or why the job would be refused, and queue nothing.",
        flag="--validate-only",
    ),
)

NOT_OF_A_PLAN = ("webhook", "validate_only")
"""Fields of `POST /jobs` that `POST /plans` does not have."""


def with_job_options(command: Callable[..., None], *, without: Collection[str] = ()) -> Callable[..., None]:
    """The command with these options before its own keyword parameters, except those of the fields `without`."""
    shared = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=one.annotation)
        for one in OPTIONS
        if one.path.partition(".")[0] not in without
    ]
    own = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
    first = [each for each in own if each.kind is not each.KEYWORD_ONLY]
    rest = [each for each in own if each.kind is each.KEYWORD_ONLY]
    command.__signature__ = inspect.Signature([*first, *shared, *rest])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in (*first, *shared, *rest)}
    return command


def request_body(options: Mapping[str, object], *, file: Mapping[str, object] | None = None) -> dict[str, object]:
    """The body of a request: that of the file, in which the given options replace what they name.

    `--calibration` replaces the text with all that belongs to it, a mix also the shares of other text, `--model` the
    model with its revision, and `--ratio` and `--drop` each other. Labels are added.
    """
    given = {name: value for name, value in options.items() if value is not None and value != []}
    body = dict(file or {})
    if any(name in given for name in _ALTERNATIVES):
        for name in _ALTERNATIVES:
            body.pop(name, None)
    if "model" in given:
        body.pop("model", None)
    sources = given.pop(_CALIBRATION, None)
    if isinstance(sources, list):
        shares = {name: given.pop(name, None) for name in (*_BESIDE_ONE_TEXT, "repeated", "judged_on")}
        before = _in_long_form(_CALIBRATION, body.get(_CALIBRATION))
        found = calibration_field(parse_sources(sources), **shares)  # type: ignore[arg-type]
        replaced = (*_OF_ONE_TEXT, *_BESIDE_ONE_TEXT) if "sources" in found else _OF_ONE_TEXT
        body[_CALIBRATION] = {name: value for name, value in before.items() if name not in replaced} | found
    for option in OPTIONS:
        if option.name in given:
            _put(body, option.path, option.read(given[option.name]))
    return body


def _in_long_form(name: str, value: object) -> Mapping[str, object]:
    """The object for which a value is short."""
    if isinstance(value, str) and name in _SHORT:
        return {_SHORT[name]: value}
    if isinstance(value, list) and name == _CALIBRATION:
        return {"sources": value}
    return value if isinstance(value, Mapping) else {}


def _put(body: dict[str, object], path: str, value: object) -> None:
    name, _, inner = path.partition(".")
    if inner:
        body[name] = {**_in_long_form(name, body.get(name)), inner: value}
    elif name == _LABELS and isinstance(value, Mapping):
        body[name] = {**_in_long_form(name, body.get(name)), **value}
    else:
        body[name] = value
