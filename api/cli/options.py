"""The options that describe a job, one row for each field of the body of `POST /jobs`, and the body they make.

`submit` and `plan` take them beside a file with such a body, `compress` those that concern a run on this machine. What
an option says replaces what the file says.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from replaceme_core.families.layout import MapStructure
from replaceme_core.request.calibration import GENERAL, SELF_GENERATED
from replaceme_core.request.gate import read_criteria
from replaceme_core.request.method import CosineLoss, Method, Selection
from replaceme_core.request.spec import Dtype, Loading, Quantization

DEEPEST = "max:"
SEVERAL = (
    f"Repeatable, as NAME or NAME=SHARE; {SELF_GENERATED}=SHARE is text that the model generates itself. A source with "
    'more options is written as JSON: \'{"dataset": "org/name", "split": "test", "share": 0.5}\'.'
)
_LONGEST_RANGE = 10_000
_SHARE = re.compile(r"(?P<name>.+)=(?P<share>\d+(\.\d*)?|\.\d+)", re.DOTALL)


def finite(value: float | None) -> float | None:
    """A callback for options: refuses NaN and infinities."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"expected a number, got {value}")
    return value


@dataclass(frozen=True, kw_only=True)
class NamedSource:
    """A value of `--calibration`. `options` are its other fields."""

    name: str
    share: object
    options: Mapping[str, object] = field(default_factory=dict)


def parse_source(text: str) -> NamedSource:
    """A text as one option names it: a name, or JSON with its options."""
    return _parse_object(text) if text.startswith("{") else NamedSource(name=text, share=None)


def parse_sources(texts: Sequence[str]) -> list[NamedSource]:
    """
    >>> [(source.name, source.share) for source in parse_sources(["org/a=0.5", "b.txt"])]
    [('org/a', 0.5), ('b.txt', None)]
    """
    return [_parse_share(text) for text in texts]


def _parse_share(text: str) -> NamedSource:
    match = None if text.startswith("{") else _SHARE.fullmatch(text)
    return parse_source(text) if match is None else NamedSource(name=match["name"], share=float(match["share"]))


def _parse_object(text: str) -> NamedSource:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text} is not JSON: {error}", param_hint="--calibration") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"expected an object, got {text}", param_hint="--calibration")
    generated = found.pop("self_generated", False) is True
    name, share = SELF_GENERATED if generated else found.pop("dataset", None), found.pop("share", None)
    if not isinstance(name, str):
        raise typer.BadParameter(
            f'expected a text in "dataset", or "self_generated": true, got {text}', param_hint="--calibration"
        )
    return NamedSource(name=name, share=share, options=found)


def calibration_field(
    sources: Sequence[NamedSource],
    *,
    self_generated: float | None = None,
    general: float | None = None,
    repeated: float | None = None,
    judged_on: str | None = None,
) -> dict[str, object]:
    """The field `calibration`: one `dataset`, or `sources` where several or a share are named.

    >>> calibration_field(parse_sources(["org/a"]), self_generated=0.5)
    {'dataset': 'org/a', 'self_generated': 0.5}
    """
    beside = _given(repeated=repeated, judged_on=judged_on)
    if [(source.name == SELF_GENERATED, source.share) for source in sources] == [(False, None)]:
        shares = _given(self_generated=self_generated, general=general)
        return {"dataset": sources[0].name, **sources[0].options, **shares, **beside}
    for option, name, share in (
        ("--self-generated", SELF_GENERATED, self_generated),
        ("--general", GENERAL, general),
    ):
        if share is not None:
            raise typer.BadParameter(
                f"it is for one calibration text; beside several write --calibration {name}={share:g}",
                param_hint=option,
            )
    return {"sources": [_source_field(source) for source in sources], **beside}


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _source_field(source: NamedSource) -> dict[str, object]:
    share = {} if source.share is None else {"share": source.share}
    name = {"self_generated": True} if source.name == SELF_GENERATED else {"dataset": source.name}
    return {**name, **source.options, **share}


def parse_ratio(text: str) -> float | dict[str, object]:
    """The field `ratio` of a specification.

    >>> parse_ratio("0.25"), parse_ratio("max:0.5")
    (0.25, {'max': 0.5})
    """
    number = text.removeprefix(DEEPEST)
    try:
        ratio = float(number)
    except ValueError:
        ratio = math.nan
    if not math.isfinite(ratio):
        raise typer.BadParameter(f"expected a number such as 0.25, or max:0.5, got {text!r}", param_hint="--ratio")
    return ratio if number == text else {"max": ratio}


def parse_drop(text: str) -> list[int]:
    """
    >>> parse_drop("3,12-14")
    [3, 12, 13, 14]
    """
    blocks: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(part) > 20:
            raise typer.BadParameter(
                f"expected block numbers such as 12,13 or 12-19, got {text!r}", param_hint="--drop"
            )
        if dash and not int(first) <= int(last) < int(first) + _LONGEST_RANGE:
            raise typer.BadParameter(f"{part.strip()!r} is not a range of blocks", param_hint="--drop")
        blocks += range(int(first), int(last) + 1) if dash else [int(first)]
    return blocks


def parse_tasks(text: str | None) -> list[str]:
    """
    >>> parse_tasks("piqa, sciq")
    ['piqa', 'sciq']
    """
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise typer.BadParameter(f"expected different names such as piqa,sciq, got {text!r}", param_hint="--tasks")
    return names


def parse_gate(criteria: Sequence[str]) -> dict[str, object]:
    """The field `gate` of a specification."""
    try:
        return read_criteria(criteria)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--gate") from None


def parse_labels(texts: Sequence[str]) -> dict[str, str]:
    """
    >>> parse_labels(["team=nlp"])
    {'team': 'nlp'}
    """
    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--label")
        labels[name] = value
    return labels


@dataclass(frozen=True, kw_only=True)
class JobOption:
    """An option of the command line: `name` is its parameter, `path` the field that it sets, with dots."""

    name: str
    path: str
    annotation: object
    read: Callable[[Any], object]


_PANELS = {
    **dict.fromkeys(("model", "ratio", "drop", "compute.pattern_safe"), "Model and blocks to remove"),
    "calibration": "Calibration text",
    "method": "Method",
    "evaluation": "Evaluation",
    "gate": "Gate",
    "output": "Result",
    "compute": "Computation",
    "webhook": "Webhook",
}
"""Where the help shows the options of a field, or of a part of the body; the others are of the job."""


def _option(
    path: str,
    kind: Any,
    help_text: str,
    *,
    name: str = "",
    flag: str = "",
    read: Callable[[Any], object] = lambda value: value,
    **more: Any,
) -> JobOption:
    """An option named after the last part of `path`, or `name`."""
    name = name or path.rpartition(".")[2]
    if not flag:
        flag = f"--{name.replace('_', '-')}"
        flag = f"{flag}/--no-{flag.removeprefix('--')}" if kind is bool else flag
    if kind is float:
        more["callback"] = finite
    panel = _PANELS.get(path) or _PANELS.get(path.partition(".")[0], "Job")
    option = typer.Option(flag, help=help_text, rich_help_panel=panel, **more)
    return JobOption(name=name, path=path, annotation=Annotated[kind | None, option], read=read)


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
    _option(
        "ratio",
        str,
        "Fraction of the blocks to remove, between 0 and 1; max:0.5 is the deepest cut that passes the gate, of at "
        "most half of the blocks.",
        metavar="RATIO|max:RATIO",
        read=parse_ratio,
    ),
    _option("drop", str, "Blocks to remove, instead of a ratio, counted from 0: 5,12-19.", read=parse_drop),
    _option(
        "compute.pattern_safe",
        bool,
        "Of a model with several kinds of blocks, such as gemma3, remove only what leaves their pattern as it is: "
        "converters to GGUF, MLX and ONNX rely on it.",
    ),
    _option(
        _CALIBRATION,
        list[str],
        f"Calibration text: builtin:general, file:NAME.txt, or a Hub data set as org/name. {SEVERAL}",
        metavar="NAME[=SHARE]",
    ),
    _option(
        "calibration.samples",
        int,
        "Number of calibration sequences. Default: 64 on a CPU and 32 of other text beside them, 1024 on a GPU.",
    ),
    _option("calibration.max_length", int, "Tokens per sequence. Default: 512 on a CPU, 1024 on a GPU."),
    _option("calibration.seed", int, "Seed for the selection of calibration text. Default: 0."),
    _option("calibration.template", str, "Chat template: auto, chat or plain. Default: auto."),
    _option(
        "calibration.self_generated",
        float,
        "Fraction of the calibration sequences that the model generates itself, 0 to 1, beside one calibration text. "
        "Default: a sixth, more beside a built-in text; 0 calibrates and judges on the one text alone.",
    ),
    _option(
        "calibration.general",
        float,
        "Fraction of the calibration sequences from the built-in general text, 0 to 1, beside one calibration text. "
        "Default: a sixth, more beside builtin:pydoc-topics, 0 with --self-generated.",
    ),
    _option(
        "calibration.repeated",
        float,
        "Sequences that repeat passages of the others, for each one that is fitted on, 0 to 1. Default: 0.25 beside "
        "one calibration text, else 0.",
    ),
    _option(
        "calibration.judged_on",
        str,
        "Built-in text on which candidates are judged beside the calibration text, or none. Default: builtin:general, "
        "or none with --self-generated 0.",
    ),
    *(
        _option(f"calibration.{part}", str, help_text, name=f"calibration_{part}")
        for part, help_text in (
            ("revision", "Branch, tag or commit of the Hub data set."),
            ("config", "Config of the Hub data set."),
            ("split", "Split of the Hub data set. Default: train."),
            ("column", "Column with the text. Default: the usual names."),
        )
    ),
    _option(
        "method.name",
        str,
        f"Compression method: {', '.join(Method)}. Default: auto where it can run, which takes longer and gives a "
        "better model, else least_squares.",
        name="method",
    ),
    _option(
        "method.ridge",
        float,
        "Regularization of the map toward plain removal. Default: chosen on held-out tokens; refit: 0.5.",
    ),
    _option("method.replays", int, "Number of windows among which the held-out loss decides. Default: 6."),
    _option(
        "method.groups",
        int,
        "Number of cuts, separate runs of blocks (least_squares, cosine and refit only). Default: 1.",
    ),
    _option("method.loss", CosineLoss, "Loss of the method cosine. Default: exact."),
    _option(
        "method.structure",
        MapStructure,
        "Structure of the map (least_squares and cosine only). Default: full where possible.",
    ),
    _option("method.as_published", bool, "Run least_squares as the reference implementation does, for comparison."),
    _option("method.selection", Selection, "How the method refit selects blocks. Default: one_by_one."),
    _option(
        "method.ridge_later",
        float,
        "Regularization of the projections after the first removed block toward their old weights (refit and auto "
        "only). Default: 0.3.",
    ),
    _option(
        "method.time_budget_seconds",
        float,
        "Seconds available to the method auto, which skips candidates that would take longer.",
        name="time_budget",
    ),
    _option("evaluation.enabled", bool, "Whether to measure both models. Default: yes.", name="evaluate"),
    _option("evaluation.samples", int, "Sequences to measure on. Default: 16.", name="evaluation_samples", metavar="N"),
    _option(
        "evaluation.tasks",
        str,
        "Tasks of the lm-evaluation-harness, or replaceme_paper for those of the paper. Needs the extra tasks.",
        metavar="NAME,...",
        read=parse_tasks,
    ),
    _option(
        "evaluation.task_limit",
        int,
        "Only so many questions of each task, for a quick look. Default: all.",
        metavar="N",
        min=1,
    ),
    _option(
        "evaluation.few_shot",
        int,
        "Examples in the prompt of each question. Default: as the task says.",
        metavar="N",
        min=0,
        max=100,
    ),
    _option(
        "gate",
        list[str],
        "What the result must be worth, else it is rejected (exit code 4): perplexity_ratio<=1.6, "
        "worst_perplexity_ratio<=2, divergence<=0.5, agreement>=0.7, size_ratio<=0.8, accuracy_kept>=0.9 or "
        "tasks.NAME>=0.95. Repeatable.",
        metavar="NAME<=LIMIT",
        read=parse_gate,
    ),
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
    _option(
        "compute.quantization",
        Quantization,
        "Hold the blocks in 4 or 8 bits while activations are captured. The result is not quantized.",
    ),
    _option(
        _LABELS,
        list[str],
        "Label for the job. Repeatable.",
        name="label",
        metavar="NAME=VALUE",
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
NOT_OF_A_RUN_HERE = (
    *("model", "output", "labels", "priority", "max_queue_seconds", "max_runtime_seconds"),
    *("credential", *NOT_OF_A_PLAN),
)
"""Fields of `POST /jobs` that mean something to a service only, or are other options of `compress`."""


def with_job_options(
    command: Callable[..., None], *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Callable[..., None]:
    """The command with these options before its own keyword parameters.

    `only` and `without` name fields, or parts of the body. An option that the command has itself is not added.
    """
    signature = inspect.signature(command)
    shared = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=one.annotation)
        for one in OPTIONS
        if one.name not in signature.parameters
        and (only is None or one.path in only)
        and not {one.path, one.path.partition(".")[0]}.intersection(without)
    ]
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
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
