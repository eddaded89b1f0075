"""The resolved specification: what a runner carries out, with every default filled in.

A type of its own, so that code that computes need not check whether a field is still open.
"""

from typing import Annotated, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from replaceme_core.calibration_spec import (
    HELD_OUT_SHARE,
    NO_OTHER_TEXT,
    CalibrationSource,
    CalibrationSpec,
    held_out_samples,
)
from replaceme_core.fields import one_of
from replaceme_core.method_spec import MethodSpec
from replaceme_core.method_traits import Method
from replaceme_core.spec import CompressionSpec, ComputeSpec, Dtype, Loading

BATCH_SIZE = 8
AUTO_PART_OF_RUNTIME = 0.5
LONG_LIMIT = 86_400.0
"""Seconds."""
DEFAULT_SHARE = 0.375
"""Share of the samples that is not of the one `dataset`, where the request leaves it open."""
GENERAL = "builtin:general"
BUILTIN_TOKENS = 24_000
"""So many tokens of the built-in general text can calibrate or judge: about half of it, by the tokenizer of SmolLM2."""
FEWEST_JUDGING, MOST_JUDGING = 2, 16
"""Sequences of a text that only judges."""


def judging_sequences(held_out: int, *, length: int) -> int:
    """How many sequences of `length` tokens a text that only judges has, beside `held_out` ones of the others.

    Half as many, within limits; 0 where so few are not to be had of the built-in text.
    """
    count = min(max(FEWEST_JUDGING, held_out // 2), MOST_JUDGING, BUILTIN_TOKENS // length)
    return count if count >= FEWEST_JUDGING else 0


class ResolvedCalibration(CalibrationSpec):
    """With the number of samples and their length; of one `dataset` also with `self_generated`.

    `judged_on` may be open: then there is no such text.
    """

    samples: int
    max_length: int

    @model_validator(mode="after")
    def _share_is_known(self) -> Self:
        if self.dataset is not None and self.self_generated is None:
            raise PydanticCustomError("still_open", "self_generated is still open", {"field": "self_generated"})
        return self


class ResolvedMethod(MethodSpec):
    """With its name."""

    name: Annotated[Method, one_of(Method)]


class ResolvedCompute(ComputeSpec):
    """With everything that decides the rounding."""

    device: str
    dtype: Dtype
    batch_size: int
    threads: int
    shards: int


class ResolvedSpec(CompressionSpec):
    """What is carried out: every default filled in, on the machine that does the work. Its JSON is that of its base."""

    calibration: ResolvedCalibration
    method: ResolvedMethod
    compute: ResolvedCompute

    @classmethod
    def of(cls, spec: CompressionSpec) -> Self:
        """A stored specification that was resolved before. Raises `ValueError` where something is still open."""
        return cls.model_validate(spec.model_dump())


def resolve_method(spec: CompressionSpec, *, loading: Loading) -> ResolvedMethod:
    """The method that is named; else `auto` where it can run as a whole, else `least_squares`.

    A model that is read block by block would be read again for each step of `auto`. A job with a limit of time gives
    `auto` half of it for its steps: the rest is for reading, the pass, saving and the evaluation. Limits of more than
    `LONG_LIMIT` are against jobs that hang, and leave it alone.
    """
    method, name = spec.method, spec.expected_method
    if method.name is None and loading is Loading.BLOCKWISE and Method.LEAST_SQUARES in method.possible:
        name = Method.LEAST_SQUARES
    update: dict[str, object] = {"name": name}
    limit = spec.max_runtime_seconds
    has_limit = limit is not None and limit <= LONG_LIMIT
    if method.name is None and name is Method.AUTO and has_limit and method.time_budget_seconds is None:
        assert limit is not None
        update["time_budget_seconds"] = max(1.0, limit * AUTO_PART_OF_RUNTIME)
    return ResolvedMethod.model_validate(method.model_dump() | update)


def resolve_mix(
    calibration: CalibrationSpec, *, samples: int, max_length: int, loading: Loading, one_text: bool
) -> ResolvedCalibration:
    """What calibrates beside a single `dataset` and what judges, where the request leaves it open.

    Text of the model's own, which is of all kinds that it has learned (docs/decisions/0030-own-text-by-default.md). A
    model that is read block by block would be read from disk for each token that it generates, so it gets the built-in
    general text instead, no more than that has. With `one_text`, nothing.

    Candidates are judged on the built-in general text, which no fit has seen, unless it calibrates, or the request is
    for one text and nothing else.
    """
    sized = calibration.model_copy(update={"samples": samples, "max_length": max_length})
    one_text = one_text or calibration.self_generated == 0
    if sized.judged_on is None:
        is_possible = not one_text and judging_sequences(held_out_samples(samples), length=max_length) > 0
        sized = sized.model_copy(update={"judged_on": GENERAL if is_possible else NO_OTHER_TEXT})
    if sized.sources is None and sized.self_generated is None:
        share = 0.0 if one_text else DEFAULT_SHARE
        if loading is Loading.BLOCKWISE and share > 0:
            sized = _with_general(sized, min(share, BUILTIN_TOKENS / (samples * max_length)))
        else:
            sized = sized.model_copy(update={"self_generated": share})
    return ResolvedCalibration.model_validate(sized.model_dump())


def _with_general(calibration: CalibrationSpec, share: float) -> CalibrationSpec:
    """The one text of `calibration` and a share of the built-in general text; alone, if that makes too few samples."""
    assert calibration.samples is not None
    if calibration.dataset == GENERAL or share * calibration.samples < HELD_OUT_SHARE:
        return calibration.model_copy(update={"self_generated": 0.0})
    fields, moved = CalibrationSpec.model_fields, ("revision", "config", "split", "column", "template")
    options = {name: getattr(calibration, name) for name in moved}
    text = CalibrationSource(dataset=calibration.dataset, share=1 - share, **options)
    general = CalibrationSource(dataset=GENERAL, share=share)
    unset = {name: fields[name].default for name in moved}
    return calibration.model_copy(update={**unset, "dataset": None, "sources": (text, general)})
