"""The option `--file`: a job as JSON or YAML, which is the body of `POST /jobs`; and the check of such a body.

The check is that of the service: the published schema, with the same sentences.
"""

import json
import re
import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from api.cli.exit_codes import ExitCode
from api.cli.failure import Failure, failure_of
from replaceme_core.errors import InvalidInput

MOST_BYTES = 64 * 1024
"""What the service reads of a body."""
STANDARD_INPUT = "-"
_FIELD = "--file"

JobFile = Annotated[
    str | None,
    typer.Option(
        _FIELD,
        metavar="FILE",
        help="A job in YAML or JSON, with the fields of POST /jobs; - is standard input. Other options replace what "
        "they name.",
    ),
]


def read_job_file(name: str, *, as_json: bool) -> dict[str, object]:
    """The job in a file, not yet checked. Raises `Failure`."""
    try:
        text = _read_text(name)
        found = _parse(text, is_json=name.endswith(".json") or (name == STANDARD_INPUT and text.lstrip()[:1] == "{"))
        if not isinstance(found, dict):
            raise _invalid(f"expected the fields of a job, such as model and ratio, got {type(found).__name__}")
        return found
    except InvalidInput as error:
        raise failure_of(error, as_json=as_json) from error


def check_request(body: Mapping[str, object], *, as_json: bool) -> None:
    """Raises `Failure` for a body that does not match the schema of `POST /jobs`."""
    # imported here: they import SQLAlchemy, which takes half a second
    from api.schemas.body import schema_of
    from api.schemas.submission import JobRequest
    from replaceme_core.validation import MOST_PROBLEMS, problems

    try:
        JobRequest.model_validate(body)
    except ValidationError as error:
        found: list[Any] = list(error.errors()[:MOST_PROBLEMS])
        raise Failure(
            "the request is not valid",
            ExitCode.BAD_INPUT,
            code=InvalidInput.code,
            errors=tuple(dict(one) for one in problems(found, sent=body, schema=schema_of(JobRequest))),
            as_json=as_json,
        ) from error


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
            return json.loads(text, object_pairs_hook=_distinct)
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


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise _invalid(f"{name} is given twice")
        found[name] = value
    return found


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    """Refuses a name that is given twice and aliases; reads `1e-3` as a number, as YAML 1.2 does, and dates as text."""

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


_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in each if tag != _TIMESTAMP]
    for first, each in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def _invalid(message: str) -> InvalidInput:
    return InvalidInput(message, field=_FIELD)
