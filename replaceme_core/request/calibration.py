"""The part of a specification that says on which text activations are captured: one text, or a mix of sources."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from replaceme_core.errors import InvalidInput
from replaceme_core.request.defaults import HELD_OUT_SHARE
from replaceme_core.request.fields import (
    BUILTIN_PREFIX,
    FILE_PREFIX,
    GENERAL,
    Frozen,
    Name,
    TextSource,
    as_tuple,
    in_short,
    length,
    wrong,
)

MOST_SOURCES = 8
SHORTEST = 8
"""Tokens of a sequence."""
SELF_GENERATED = "self-generated"
"""The name in reports of the source that the model generates."""
SHARE_TOLERANCE = 1e-6
NO_OTHER_TEXT = "none"
"""As `judged_on`: on the sources of the mix alone."""
JudgingText = Literal[
    "builtin:general", "builtin:prose", "builtin:dialogue", "builtin:code", "builtin:instructions", "none"
]
_PART = "calibration"


def held_out_samples(samples: int) -> int:
    """How many of `samples` sequences are held out."""
    return max(1, samples // HELD_OUT_SHARE)


class GivenText(Frozen):
    """A text, and what is read of it."""

    dataset: TextSource | None = None
    """A built-in text, file:NAME, or a Hub data set as org/name; null with `sources`, and in a source with
    `self_generated`."""
    revision: Name | None = None
    """Branch, tag or commit of the Hub data set. Default: main."""
    config: Name | None = None
    """Config of the Hub data set."""
    split: Name = "train"
    """Split of the Hub data set. Default: train."""
    column: Name | None = None
    """Column with the text. Default: the usual names."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """Chat template. Default: auto."""


_WHICH_TEXT = ("revision", "config", "split", "column")
_OPTIONS_OF_A_TEXT = (*_WHICH_TEXT, "template")


class CalibrationSource(GivenText):
    """One source of calibration text: `dataset`, or with `self_generated` what the model generates itself.

    `share` is its part of the samples; `None`: an equal part of what the other sources leave; 0: nothing is fitted on
    it, but candidates are judged on it.
    """

    self_generated: bool = False
    """Whether it is text that the model itself generates."""
    share: float | None = Field(default=None, ge=0, le=1)
    """Its part of the samples; null: an equal part of what the others leave. 0: candidates are only judged on it."""

    @model_validator(mode="after")
    def _is_one_source(self) -> Self:
        if (self.dataset is not None) == self.self_generated:
            problem = "both are given" if self.self_generated else "neither is given"
            raise wrong(
                "dataset",
                f"give either dataset (a text) or self_generated: true (text of the model's own): {problem}",
            )
        for option in _OPTIONS_OF_A_TEXT:
            if self.self_generated and getattr(self, option) != type(self).model_fields[option].default:
                raise wrong(option, f"{option} is for a dataset; leave it out here")
        return self

    @property
    def name(self) -> str:
        """The data set's name, or "self-generated"."""
        return self.dataset or SELF_GENERATED

    @property
    def is_file(self) -> bool:
        """Whether it is a file beside the service."""
        return self.name.startswith(FILE_PREFIX)

    @property
    def is_on_hub(self) -> bool:
        """Whether it is a data set on the Hub."""
        return not (self.self_generated or self.name.startswith((BUILTIN_PREFIX, FILE_PREFIX)))


class MixedSource(CalibrationSource):
    """A source as a part of the mix: with its share.

    `field` is where the request has its options, and `name_field` its name: "calibration.sources.1.dataset".
    """

    share: float = Field(ge=0, le=1)
    field: str = _PART
    name_field: str = _PART


Source = Annotated[CalibrationSource, in_short(str | CalibrationSource, dataset=str)]
Sources = Annotated[tuple[Source, ...], BeforeValidator(as_tuple), length(1, MOST_SOURCES)]


class CalibrationSpec(GivenText):
    """The text that activations are captured on: either one `dataset` or several `sources`.

    `samples` sequences of `max_length` tokens, packed without padding; the sequences held out for choosing the cut
    are part of that count. What is `None` is decided on the worker; of a short text there are fewer samples.
    """

    sources: Sources | None = None
    """Several texts, in place of one."""
    samples: int | None = Field(default=None, ge=2, le=1_000_000)
    """Number of calibration sequences. Default: 64 on a CPU, 96 with other text beside one text; 1024 on a GPU."""
    max_length: int | None = Field(default=None, ge=SHORTEST, le=131_072)
    """Tokens per sequence. Default: 512 on a CPU, 1024 on a GPU."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed for the selection of calibration text. Default: 0."""
    self_generated: float | None = Field(default=None, ge=0, le=1)
    """Fraction of the calibration sequences that the model generates itself, 0 to 1, beside one calibration text.
    Default: a quarter; 0 calibrates and judges on the one text alone.

    They replace text of `dataset`. With `sources` this text is one of them.
    """
    general: float | None = Field(default=None, ge=0, le=1)
    """Fraction of the calibration sequences from the built-in general text, 0 to 1, beside one calibration text.
    Default: three eighths, 0 with `self_generated`.

    They replace text of `dataset`. With `sources` this text is one of them.
    """
    repeated: float | None = Field(default=None, ge=0, le=1)
    """Number of sequences that repeat passages of the others, as a fraction of the fitted ones, 0 to 1. Default: 0.25
    beside one calibration text, else 0.

    They are not part of `samples`.
    """
    judged_on: JudgingText | None = None
    """Built-in text on which candidates are judged beside the calibration text, or none. Default: builtin:general, or
    none with `self_generated` 0.

    Its sequences are not part of `samples`. It may calibrate as well, with other documents.
    """

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.dataset is None) == (self.sources is None):
            problem = "neither is given" if self.dataset is None else "both are given"
            raise wrong("dataset", f"give either dataset (one text) or sources (several): {problem}")
        for option in (*_OPTIONS_OF_A_TEXT, "self_generated", "general"):
            if self.sources is not None and getattr(self, option) != type(self).model_fields[option].default:
                raise wrong(option, f"{option} belongs to one of the sources; leave it out here")
        if self.general and self.dataset == GENERAL:
            raise wrong("general", "dataset is this text already")
        if (self.self_generated or 0) + (self.general or 0) > 1 + SHARE_TOLERANCE:
            raise wrong("general", "self_generated and general are more than all samples together")
        if self.sources is not None:
            _check_mix(self.sources, self.samples)
        return self

    @property
    def mix(self) -> tuple[MixedSource, ...]:
        """The sources in order, each with its share.

        `dataset` alone is a mix of that text and, if they have a share, of what the model generates and the built-in
        general text. An open share counts as none. The text of `judged_on` is the last one, with share 0, unless it is
        a source.
        """
        given = self._given_mix
        if self.judged_on in {None, NO_OTHER_TEXT, *(source.name for source in given)}:
            return given
        return (*given, MixedSource(dataset=self.judged_on, share=0))

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each source of the mix in reports, where results are by name: no two are the same.

        Those of one data set are followed by the options that differ: "org/x (config de)".
        """
        mix, found = self.mix, list[str]()
        for source in mix:
            alike = [other for other in mix if other.name == source.name]
            own = [
                f"{option} {value}"
                for option in _WHICH_TEXT
                if (value := getattr(source, option)) is not None
                and any(getattr(other, option) != value for other in alike)
            ]
            found.append(f"{source.name} ({', '.join(own)})" if own else source.name)
        return tuple(found)

    @property
    def _given_mix(self) -> tuple[MixedSource, ...]:
        if self.sources is not None:
            given = [source.share for source in self.sources if source.share is not None]
            equal = (1 - sum(given)) / max(1, len(self.sources) - len(given))
            places = (f"{_PART}.sources.{number}" for number in range(len(self.sources)))
            return tuple(
                MixedSource.model_construct(
                    **{
                        **dict(source),
                        "share": equal if source.share is None else source.share,
                        "field": place,
                        "name_field": f"{place}.dataset",
                    }
                )
                for source, place in zip(self.sources, places, strict=True)
            )
        generated, general = self.self_generated or 0.0, self.general or 0.0
        options = {name: getattr(self, name) for name in GivenText.model_fields}
        text = MixedSource.model_construct(**options, share=max(0.0, 1 - generated - general))
        own = (MixedSource(self_generated=True, share=generated),) if generated > 0 else ()
        more = (MixedSource(dataset=GENERAL, share=general),) if general > 0 else ()
        return (text, *own, *more)

    @property
    def generated_share(self) -> float:
        """The share of the samples that the model generates itself."""
        return sum(source.share for source in self.mix if source.self_generated)

    def with_revisions(self, revisions: Sequence[str | None]) -> Self:
        """The same with these revisions, one for each source of the mix."""
        if self.sources is None:
            return self.model_copy(update={"revision": revisions[0]})
        pinned = zip(self.sources, revisions, strict=False)  # the text of `judged_on` has none
        sources = tuple(source.model_copy(update={"revision": revision}) for source, revision in pinned)
        return self.model_copy(update={"sources": sources})


def find_repeated(sources: Sequence[CalibrationSource]) -> int | None:
    """The number of the first source that is the same text as one before it; `None` if there is none."""
    seen = set()
    for number, source in enumerate(sources):
        text = (source.name, *(getattr(source, option) for option in _WHICH_TEXT))
        if text in seen:
            return number
        seen.add(text)
    return None


def _check_mix(sources: Sequence[CalibrationSource], samples: int | None) -> None:
    generated = [number for number, source in enumerate(sources) if source.self_generated]
    if len(generated) > 1:
        first, second, *_ = generated
        raise wrong(f"sources.{second}", f"one source at most is self-generated; sources {first} and {second} are")
    texts = sum(not source.self_generated and source.share != 0 for source in sources)
    if texts == 0:
        raise wrong("sources", "at least one source is a text with a share above 0, on which the result is measured")
    twice = find_repeated(sources)
    if twice is not None:
        raise wrong(
            f"sources.{twice}",
            f"{sources[twice].name} is given twice; name another revision, config, split or column, or give it "
            "once with the sum of the shares",
        )
    total = sum(source.share for source in sources if source.share is not None)
    open_ones = [number for number, source in enumerate(sources) if source.share is None]
    if open_ones and total > 1 - SHARE_TOLERANCE:
        raise wrong(
            f"sources.{open_ones[0]}",
            f"the shares of the other sources add up to {total:.6g}, which leaves nothing for this one",
        )
    if not open_ones and abs(total - 1) > SHARE_TOLERANCE:
        raise wrong("sources", f"the shares must add up to 1; they add up to {total:.8g}")
    if samples is not None and texts > held_out_samples(samples):
        raise wrong(
            "samples",
            f"of {samples} samples {held_out_samples(samples)} are held out, and each of the {texts} "
            f"texts needs one: ask for at least {HELD_OUT_SHARE * texts}",
        )


@contextmanager
def errors_of(source: MixedSource) -> Iterator[None]:
    """Errors that name a field of the one `dataset`, "calibration.split", name the field of this source."""
    try:
        yield
    except InvalidInput as error:
        if error.field == _PART or error.field == f"{_PART}.dataset":
            error.field = source.name_field if source.field != _PART else error.field
        elif error.field is not None and error.field.removeprefix(f"{_PART}.") in _OPTIONS_OF_A_TEXT:
            error.field = f"{source.field}.{error.field.removeprefix(f'{_PART}.')}"
        raise
