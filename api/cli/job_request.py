"""The body of `POST /jobs`, from a file and from options; there is an option for each field of the request.

An option has the type of its field, and the first paragraph of its description as help. What an option says replaces
what the file says. The body is checked as the service does it: with the published schema and the same sentences.
"""

import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import typer
import yaml
from pydantic import BaseModel

from api.cli.output.console import set_parameters
from api.client.errors import Invalid
from api.client.models import FieldError, Problem
from api.request_bodies import MOST_BYTES, JobRequest, checked
from replaceme_core.errors import InvalidInput
from replaceme_core.request.calibration import SELF_GENERATED, CalibrationSource
from replaceme_core.request.gate import read_criteria
from replaceme_core.request.removal import read_blocks
from replaceme_core.validation import MOST_PROBLEMS
from replaceme_core.wording import distinct

STANDARD_INPUT = "-"
SEVERAL = (
    f"Repeatable, as NAME or NAME=SHARE; {SELF_GENERATED}=SHARE is text that the model generates itself. A source with "
    'more options is written as JSON: \'{"dataset": "org/name", "split": "test", "share": 0.5}\'.'
)
_FIELD = "--file"
_DEEPEST = "max:"
_SHARE = re.compile(r"(?P<name>.+)=(?P<share>\d+(\.\d*)?|\.\d+)", re.DOTALL)

JobFile = Annotated[
    str | None,
    typer.Option(
        _FIELD,
        metavar="FILE",
        help="A job in YAML or JSON, with the fields of POST /jobs; - is standard input. Other options replace what "
        "they name.",
    ),
]


def parse_ratio(text: str) -> float | list[object] | dict[str, object]:
    """
    >>> parse_ratio("0.25"), parse_ratio("max:0.5"), parse_ratio("0.25,0.5")
    (0.25, {'max': 0.5}, [0.25, 0.5])
    """
    if "," in text:
        return [parse_ratio(part) for part in text.split(",")]
    number = text.removeprefix(_DEEPEST)
    try:
        ratio = float(number)
    except ValueError:
        ratio = math.nan
    if not math.isfinite(ratio):
        raise typer.BadParameter(f"expected a number such as 0.25, or max:0.5, got {text!r}", param_hint="--ratio")
    return ratio if number == text else {"max": ratio}


def parse_drop(text: str) -> list[object]:
    """
    >>> parse_drop("3,12-14")
    [3, 12, 13, 14]
    """
    blocks = read_blocks(text)
    if not all(isinstance(one, int) for one in blocks):
        raise typer.BadParameter(f"expected block numbers such as 12,13 or 12-19, got {text!r}", param_hint="--drop")
    return blocks


def parse_text(text: str) -> dict[str, object]:
    """A text as one option names it: a name, or JSON with its options."""
    if not text.startswith("{"):
        return {"dataset": text}
    try:
        found: dict[str, object] = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text} is not JSON: {error}") from error
    return found


def parse_sources(texts: Sequence[str]) -> list[dict[str, object]]:
    """
    >>> parse_sources(["org/a=0.5", "self-generated"])
    [{'dataset': 'org/a', 'share': 0.5}, {'self_generated': True}]
    """
    sources = []
    for text in texts:
        found = None if text.startswith("{") else _SHARE.fullmatch(text)
        share = {} if found is None else {"share": float(found["share"])}
        name = text if found is None else found["name"]
        sources.append({**({"self_generated": True} if name == SELF_GENERATED else parse_text(name)), **share})
    return sources


def parse_tasks(text: str | None) -> list[str]:
    """
    >>> parse_tasks("piqa, sciq")
    ['piqa', 'sciq']
    """
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise typer.BadParameter(f"expected different names such as piqa,sciq, got {text!r}", param_hint="--tasks")
    return names


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
        if labels.get(name, value) != value:
            raise typer.BadParameter(f"{name} is given twice, and a job has one value of it", param_hint="--label")
        labels[name] = value
    return labels


class Writing(NamedTuple):
    """How a field is written that is no plain value; `help_text` follows the description of the field."""

    kind: Any
    metavar: str
    read: Callable[[Any], object]
    help_text: str = ""


_WRITINGS = {
    "ratio": Writing(
        str,
        "RATIO[,...]|max:RATIO",
        parse_ratio,
        "Such as 0.25 or max:0.5; submit also takes 0.25,0.5: a job each.",
    ),
    "drop": Writing(str, "BLOCKS", parse_drop, "Such as 5,12-19."),
    "calibration": Writing(list[str], "NAME[=SHARE]", parse_sources, SEVERAL),
    "heal.dataset": Writing(str, "NAME", parse_text),
    "evaluation.tasks": Writing(str, "NAME,...", parse_tasks),
    "gate": Writing(
        list[str],
        "NAME<=LIMIT",
        read_criteria,
        "The exit code is then 4. perplexity_ratio<=1.6, worst_perplexity_ratio<=2, divergence<=0.5, agreement>=0.7, "
        "size_ratio<=0.8, embedding_distance<=0.05, accuracy_kept>=0.9 or tasks.NAME>=0.95. Repeatable.",
    ),
    "labels": Writing(list[str], "NAME=VALUE", parse_labels, "Repeatable."),
    "webhook.events": Writing(list[str], "", list, "Repeatable. Default: succeeded, failed and cancelled."),
}
_NAMES = {
    "model.repo_id": "model",
    **{f"calibration.{part}": f"calibration_{part}" for part in ("revision", "config", "split", "column")},
    "method.name": "method",
    "method.time_budget_seconds": "time_budget",
    **{f"heal.{part}": f"heal_{part}" for part in ("tokens", "dataset", "learning_rate", "weights")},
    "heal.time_budget_seconds": "heal_time_budget",
    "evaluation.enabled": "evaluate",
    "evaluation.samples": "evaluation_samples",
    "output.repo_id": "output",
    "labels": "label",
    "webhook.url": "webhook",
    "webhook.events": "webhook_event",
    "webhook.payload": "webhook_payload",
    "webhook.signed_by": "webhook_signed_by",
}
"""Of options that are not named after the last part of their field."""
_FLAGS = {"output.private": "--private/--public", "validate_only": "--validate-only"}
_PANELS = {
    **dict.fromkeys(("model", "ratio", "drop", "compute.pattern_safe"), "Model and blocks to remove"),
    "calibration": "Calibration text",
    "method": "Method",
    "heal": "Healing",
    "evaluation": "Evaluation",
    "gate": "Gate",
    "output": "Result",
    "compute": "Computation",
    "webhook": "Webhook",
}
"""Where the help shows the options of a field, or of a part of the body; the others are of the job."""


@dataclass(frozen=True, kw_only=True)
class JobOption:
    """An option of the command line: `name` is its parameter, `path` the field that it sets, with dots."""

    name: str
    path: str
    annotation: object
    read: Callable[[Any], object]


def _options() -> Iterator[JobOption]:
    for path, kind, help_text in _fields(JobRequest):
        written = _WRITINGS.get(path) or Writing(kind, "", lambda value: value)
        option = typer.Option(
            *([_FLAGS[path]] if path in _FLAGS else []),
            help=f"{help_text} {written.help_text}".strip(),
            metavar=written.metavar or None,
            rich_help_panel=_PANELS.get(path) or _PANELS.get(path.partition(".")[0], "Job"),
        )
        name = _NAMES.get(path) or path.rpartition(".")[2]
        yield JobOption(name=name, path=path, annotation=Annotated[written.kind | None, option], read=written.read)


def _fields(spec: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Path, type and help of each field that has an option."""
    for name, field in spec.model_fields.items():
        here, kind = f"{path}{name}", _kind(field.annotation)
        is_part = inspect.isclass(kind) and issubclass(kind, BaseModel)
        if here in _WRITINGS or (not is_part and here not in ("calibration.dataset", "calibration.sources")):
            yield here, kind, _help(field.description or "")
        if is_part and here not in ("gate", "heal.dataset"):
            yield from _fields(kind, f"{here}.")


def _kind(annotation: Any) -> Any:
    """What an annotation is about, without `None` and without checks."""
    return _kind(get_args(annotation)[0]) if get_origin(annotation) in (Annotated, Union, UnionType) else annotation


def _help(description: str) -> str:
    """
    >>> _help("Such as\\n0 with `self_generated`.\\n\\nMore.")
    'Such as 0 with --self-generated.'
    """
    first = " ".join(description.partition("\n\n")[0].split())
    return re.sub("`(.+?)`", lambda field: f"--{field[1].replace('_', '-')}", first)


OPTIONS = tuple(_options())
NOT_OF_A_PLAN = ("webhook", "validate_only")
"""Fields of `POST /jobs` that `POST /plans` does not have."""
NOT_OF_A_RUN_HERE = (
    *("model", "output", "labels", "priority", "max_queue_seconds", "max_runtime_seconds"),
    *("credential", *NOT_OF_A_PLAN),
)
"""Fields of `POST /jobs` that mean something to a service only, or are other options of `compress`."""


def with_job_options(
    *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command with these options before its own keyword parameters.

    `only` and `without` name fields, or parts of the body. An option that the command has itself is not added.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters
        shared = [
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=one.annotation)
            for one in OPTIONS
            if one.name not in own
            and (only is None or one.path in only)
            and not {one.path, one.path.partition(".")[0]}.intersection(without)
        ]
        set_parameters(command, [*shared, *(one for one in own.values() if one.kind is not one.VAR_KEYWORD)])
        return command

    return decorate


_SHORT = {"model": "repo_id", "calibration": "dataset", "method": "name", "output": "repo_id"}
"""The field of the long form for which a plain string is short."""


def request_body(options: Mapping[str, object], *, file: Mapping[str, object] | None = None) -> dict[str, object]:
    """The body of a request: that of the file, in which the given options replace what they name.

    `--calibration` replaces the text with all that belongs to it, a mix also the shares of other text, `--model` the
    model with its revision, and `--ratio` and `--drop` each other. Labels are added.
    """
    given = {name: value for name, value in options.items() if value is not None and value != []}
    replaced = {"model"} & given.keys() | ({"ratio", "drop"} if {"ratio", "drop"} & given.keys() else set())
    body = {name: value for name, value in (file or {}).items() if name not in replaced}
    for option in OPTIONS:
        if option.name not in given:
            continue
        try:
            value: Any = option.read(given[option.name])
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=f"--{option.name.replace('_', '-')}") from None
        name, _, inner = option.path.partition(".")
        before = _in_long_form(name, body.get(name))
        if inner:
            value = {**before, inner: value}
        elif name == "labels":
            value = {**before, **value}
        elif name == "calibration":
            value = _with_sources(before, value)
        body[name] = value
    return body


def _in_long_form(name: str, value: object) -> Mapping[str, object]:
    """The object for which a value is short."""
    if isinstance(value, str) and name in _SHORT:
        return {_SHORT[name]: value}
    if isinstance(value, list) and name == "calibration":
        return {"sources": value}
    return value if isinstance(value, Mapping) else {}


def _with_sources(before: Mapping[str, object], sources: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The field `calibration` with other text; shares of other text stay beside one text only."""
    is_one = len(sources) == 1 and not sources[0].keys() & {"share", "self_generated"}
    shares = {"self_generated", "general"}
    replaced = ({"sources", *CalibrationSource.model_fields} | shares) - (shares if is_one else set())
    kept = {name: value for name, value in before.items() if name not in replaced}
    return {**kept, **sources[0]} if is_one else {**kept, "sources": sources}


def check_request(body: Mapping[str, object]) -> None:
    """Raises `Invalid`, as the service's answer does, for a body that does not match the schema of `POST /jobs`."""
    request, found = checked(JobRequest, body)
    if request is None:
        errors = tuple(map(FieldError.model_validate, found[:MOST_PROBLEMS]))
        raise Invalid(Problem(status=422, code=InvalidInput.code, detail="the request is not valid", errors=errors))


def read_job_file(name: str) -> dict[str, object]:
    """The job in a file, not yet checked. Raises `InvalidInput`."""
    text = _read_text(name)
    found = _parse(text, is_json=name.endswith(".json") or (name == STANDARD_INPUT and text.lstrip()[:1] == "{"))
    if not isinstance(found, dict):
        raise _invalid(f"expected the fields of a job, such as model and ratio, got {type(found).__name__}")
    return found


def _read_text(name: str) -> str:
    try:
        if name == STANDARD_INPUT:
            content = sys.stdin.buffer.read(MOST_BYTES + 1)
        else:
            with Path(name).expanduser().open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise _invalid(f"{name} is larger than {MOST_BYTES:,} bytes, the most that a request may have")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise _invalid(f"{name} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise _invalid(f"{name} is not UTF-8: byte {error.start} cannot be read") from error


def _parse(text: str, *, is_json: bool) -> object:
    try:
        if is_json:
            return json.loads(text, object_pairs_hook=distinct)
        found: object = yaml.load(text, Loader=_Loader)  # a subclass of the safe loader
        return found
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f", line {mark.line + 1} column {mark.column + 1}"
        raise _invalid(f"this is not YAML: {getattr(error, 'problem', None) or error}{place}") from error
    except json.JSONDecodeError as error:
        raise _invalid(f"this is not JSON: {error.msg}, line {error.lineno} column {error.colno}") from error
    except (RecursionError, ValueError) as error:
        raise _invalid(f"this cannot be read: {error}") from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    """Refuses a name that is given twice and aliases; reads dates as text, and numbers as YAML 1.2 does:

    `1e-3` is one, `010` is ten, and `1:30` is none.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        names = [self.construct_object(name, deep=True) for name, _ in node.value]
        for (name, _), value in zip(node.value, names, strict=True):
            problem = f"{value} is given twice" if names.count(value) > 1 else ""
            if not isinstance(value, str):
                problem = f"expected a name, got {value!r}; write it in quotation marks"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return found


_TIMESTAMP, _INTEGER = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in each if tag not in (_TIMESTAMP, _INTEGER)]
    for first, each in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(_INTEGER, re.compile(r"[-+]?\d+(_\d+)*$", re.ASCII), list("-+0123456789"))
_Loader.add_constructor(_INTEGER, lambda loader, node: int(loader.construct_scalar(node)))


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(message, field=_FIELD)
