"""The resolved specification: what a runner carries out, with every default filled in.

A type of its own, so that code that computes need not check whether a field is still open.
"""

from typing import Annotated, Self

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from replaceme_core.request.calibration_spec import (
    ACCELERATOR_CALIBRATION,
    CPU_CALIBRATION,
    GENERAL,
    NO_OTHER_TEXT,
    PARTS_OF_GENERAL,
    CalibrationSpec,
    held_out_samples,
)
from replaceme_core.request.fields import BUILTIN_PREFIX, one_of
from replaceme_core.request.method_spec import MethodSpec
from replaceme_core.request.method_traits import Method
from replaceme_core.request.spec import CompressionSpec, ComputeSpec, Dtype, Loading

BATCH_SIZE = 8
AUTO_PART_OF_RUNTIME = 0.5
LONG_LIMIT = 86_400.0
"""Seconds."""
CPU_SAMPLES_OF_OPEN_MIX = 96
"""Where the request leaves the mix open, other text comes beside the usual samples of the text that it names
(docs/explanation/how-the-default-works.md#mix)."""
OWN_SHARE, GENERAL_SHARE = 0.1667, 0.1667
"""A sixth each, in the digits that people read: shares of the samples that the model generates and that are of the
built-in general text, beside the one `dataset`, where the request leaves them open
(docs/explanation/how-the-default-works.md#mix)."""
OWN_SHARE_OF_BUILT_IN, GENERAL_SHARE_OF_BUILT_IN = 0.375, 0.4167
"""The same beside a built-in text: the model is for general use (docs/explanation/how-the-default-works.md#mix)."""
OWN_SHARE_OF_PART = 0.25
"""Beside a part of the general text, which has no more of it (docs/explanation/how-the-default-works.md#mix)."""
REPEATED_SHARE = 0.25
"""Sequences of repeated passages for each fitted one, where the mix is open
(docs/explanation/how-the-default-works.md#repeated)."""
FITTED_TOKENS, JUDGING_TOKENS = 20_480, 12_000
"""So many tokens of a built-in text can calibrate and judge; by SmolLM2's tokenizer the general one has 57,000."""
FEWEST_JUDGING, MOST_JUDGING = 2, 16
"""Sequences of the text that judges."""


def judging_sequences(held_out: int, *, length: int) -> int:
    """How many sequences of `length` tokens the text of `judged_on` has, beside `held_out` ones of the others.

    Half as many, within limits; 0 where so few are not to be had of the built-in text.
    """
    count = min(max(FEWEST_JUDGING, held_out // 2), MOST_JUDGING, JUDGING_TOKENS // length)
    return count if count >= FEWEST_JUDGING else 0


class ResolvedCalibration(CalibrationSpec):
    """With the number of samples and their length; of one `dataset` also with `self_generated`.

    `general`, `repeated` and `judged_on` may be open, as in a specification of an earlier version: then there is none.
    """

    samples: int
    max_length: int

    @property
    def repeating(self) -> int:
        """How many of the fitted sequences repeat passages."""
        return round((self.repeated or 0.0) * (self.samples - held_out_samples(self.samples)))

    def repeating_held_out(self, method: Method) -> int:
        """How many held-out ones do: none, or for `auto` half as many as of the samples, where any is fitted on.

        Where a refit follows they judge; a method that a request names does not look at them
        (docs/explanation/how-the-default-works.md#runs).
        """
        if method is not Method.AUTO or not self.repeating:
            return 0
        return min(max(1, held_out_samples(self.samples) // 2), MOST_JUDGING)

    @property
    def judges(self) -> tuple[bool, ...]:
        """Of each source of the mix: whether it has held-out sequences beside those of the samples.

        The text of `judged_on` has, unless it is the only text, and so has a text whose share is 0.
        """
        fitted = [source for source in self.mix if not source.self_generated and source.share > 0]
        has_others = any(source.name != self.judged_on for source in fitted)
        return tuple(
            not source.self_generated and (source.share == 0 or (has_others and source.name == self.judged_on))
            for source in self.mix
        )

    @property
    def judging(self) -> int:
        """How many sequences each source of `judges` has."""
        return judging_sequences(held_out_samples(self.samples), length=self.max_length)

    @property
    def own_judging(self) -> int:
        """How many held-out sequences of the model's own text are not part of the samples.

        Where the request names one text and another one judges, so many that there are about as many as of that: an
        eighth of the samples is a single one (docs/explanation/how-the-default-works.md#mix).
        """
        if self.dataset is None or self.generated_share == 0 or not any(self.judges):
            return 0
        return max(0, self.judging - round(held_out_samples(self.samples) * self.generated_share))

    @property
    def generating(self) -> int:
        """How many sequences the model generates, about."""
        return round(self.samples * self.generated_share) + self.own_judging

    def beside_samples(self, method: Method) -> int:
        """How many sequences calibrate and judge that are not part of `samples`."""
        texts = sum(self.judges) * self.judging
        return texts + self.own_judging + self.repeating + self.repeating_held_out(method)

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


def usual_size(calibration: CalibrationSpec, *, on_cpu: bool, one_text: bool) -> tuple[int, int]:
    """The samples and their length, as given or else the usual ones; with `one_text` nothing is mixed into the text."""
    samples, length = CPU_CALIBRATION if on_cpu else ACCELERATOR_CALIBRATION
    if on_cpu and calibration.dataset is not None and calibration.self_generated is None and not one_text:
        samples = CPU_SAMPLES_OF_OPEN_MIX
    return calibration.samples or samples, calibration.max_length or length


def resolve_text(spec: CompressionSpec, *, on_cpu: bool, loading: Loading) -> ResolvedCalibration:
    """The calibration of `spec` with its usual size and what is mixed in (`resolve_mix`), where these are open."""
    one_text = spec.one_text
    samples, length = usual_size(spec.calibration, on_cpu=on_cpu, one_text=one_text)
    return resolve_mix(spec.calibration, samples=samples, max_length=length, loading=loading, one_text=one_text)


def resolve_mix(
    calibration: CalibrationSpec, *, samples: int, max_length: int, loading: Loading, one_text: bool
) -> ResolvedCalibration:
    """What calibrates beside a single `dataset` and what judges, where the request leaves it open.

    Text of the model's own, which is of all kinds that it has learned, and the built-in general text, no more than that
    has. A model that is read block by block would be read from disk for each token that it generates, so it gets the
    built-in text in place of its own as well. With `one_text`, or where the request says so with a `self_generated` of
    0, nothing.

    Candidates are also judged on the built-in general text, unless the request is for one text and nothing else, or for
    a part of that text.
    """
    sized = calibration.model_copy(update={"samples": samples, "max_length": max_length})
    one_text = one_text or calibration.self_generated == 0
    if sized.judged_on is None:
        has_enough = judging_sequences(held_out_samples(samples), length=max_length) > 0
        judges = has_enough and not one_text and sized.dataset not in PARTS_OF_GENERAL
        sized = sized.model_copy(update={"judged_on": GENERAL if judges else NO_OTHER_TEXT})
    if sized.sources is None:
        sized = sized.model_copy(update=_open_shares(sized, samples * max_length, loading=loading, one_text=one_text))
    return ResolvedCalibration.model_validate(sized.model_dump())


def _open_shares(calibration: CalibrationSpec, tokens: int, *, loading: Loading, one_text: bool) -> dict[str, float]:
    """`self_generated`, `general` and `repeated`, of `tokens` in all."""
    own, general, repeated = calibration.self_generated, calibration.general, calibration.repeated
    is_open = own is None and not one_text
    usual_own, usual_general = _usual_shares(calibration.dataset)
    if own is None:
        own = usual_own if is_open and loading is not Loading.BLOCKWISE else 0.0
    if general is None:
        wanted = usual_general if own > 0 or usual_general == 0 else usual_general + usual_own
        general = min(wanted, 1 - own, FITTED_TOKENS / tokens) if is_open else 0.0
    if repeated is None:
        repeated = REPEATED_SHARE if is_open else 0.0
    return {"self_generated": own, "general": general, "repeated": repeated}


def _usual_shares(dataset: str | None) -> tuple[float, float]:
    """Of own and of general text, whose documents must not calibrate and measure under two names."""
    if dataset == GENERAL:
        return OWN_SHARE, 0.0
    if dataset in PARTS_OF_GENERAL:
        return OWN_SHARE_OF_PART, 0.0
    if dataset is not None and dataset.startswith(BUILTIN_PREFIX):
        return OWN_SHARE_OF_BUILT_IN, GENERAL_SHARE_OF_BUILT_IN
    return OWN_SHARE, GENERAL_SHARE
