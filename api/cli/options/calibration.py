"""Options of `compress` and `submit` that describe the calibration text, and the field `calibration` of the request."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer

from api.cli.options.checks import finite
from replaceme_core.calibration_spec import GENERAL, SELF_GENERATED

SEVERAL = (
    f"Repeatable, as NAME or NAME=SHARE; {SELF_GENERATED}=SHARE is text that the model generates itself. A source with "
    'more options is written as JSON: \'{"dataset": "org/name", "split": "test", "share": 0.5}\'.'
)
Samples = Annotated[
    int | None,
    typer.Option(
        help="Number of calibration sequences. Default: 64 on a CPU and 32 of other text beside them, 1024 on a GPU."
    ),
]
MaxLength = Annotated[int | None, typer.Option(help="Tokens per sequence. Default: 512 on a CPU, 1024 on a GPU.")]
SelfGenerated = Annotated[
    float | None,
    typer.Option(
        callback=finite,
        help="Fraction of the calibration sequences that the model generates itself, 0 to 1, beside one calibration "
        "text. Default: a sixth, more beside a built-in text; 0 calibrates and judges on the one text alone.",
    ),
]
General = Annotated[
    float | None,
    typer.Option(
        callback=finite,
        help="Fraction of the calibration sequences from the built-in general text, 0 to 1, beside one calibration "
        "text. Default: a sixth, more beside builtin:pydoc-topics, 0 with --self-generated.",
    ),
]
Repeated = Annotated[
    float | None,
    typer.Option(
        callback=finite,
        help="Sequences that repeat passages of the others, for each one that is fitted on, 0 to 1. Default: 0.25 "
        "beside one calibration text, else 0.",
    ),
]
JudgedOn = Annotated[
    str | None,
    typer.Option(
        help="Built-in text on which candidates are judged beside the calibration text, or none. Default: "
        "builtin:general, or none with --self-generated 0.",
    ),
]
Revision = Annotated[
    str | None, typer.Option("--calibration-revision", help="Branch, tag or commit of the Hub data set.")
]
Config = Annotated[str | None, typer.Option("--calibration-config", help="Config of the Hub data set.")]
Split = Annotated[str | None, typer.Option("--calibration-split", help="Split of the Hub data set. Default: train.")]
Column = Annotated[
    str | None, typer.Option("--calibration-column", help="Column with the text. Default: the usual names.")
]
_SHARE = re.compile(r"(?P<name>.+)=(?P<share>\d+(\.\d*)?|\.\d+)", re.DOTALL)


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
    return [_parse_source(text) for text in texts]


def _parse_source(text: str) -> NamedSource:
    if text.startswith("{"):
        return _parse_object(text)
    match = _SHARE.fullmatch(text)
    if match is None:
        return NamedSource(name=text, share=None)
    return NamedSource(name=match["name"], share=float(match["share"]))


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
