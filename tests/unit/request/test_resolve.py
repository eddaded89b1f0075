"""What a specification leaves open is filled in once, by the facts of a machine."""

import pytest
from pydantic import ValidationError

from replaceme_core.engine.numerics import stream
from replaceme_core.engine.text.drawing import sequence_counts
from replaceme_core.hardware import WorkerKind
from replaceme_core.request import defaults
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.defaults import (
    FITTED_TOKENS,
    GENERAL_SHARE,
    OWN_SHARE,
    OWN_SHARE_OF_BUILT_IN,
    OWN_SHARE_OF_PART,
)
from replaceme_core.request.method import Method, MethodSpec
from replaceme_core.request.resolve import Machine, ResolvedCalibration, ResolvedSpec, resolve_spec
from replaceme_core.request.spec import (
    CompressionRequest,
    CompressionSpec,
    ComputeSpec,
    EvaluationSpec,
    Loading,
    ModelRef,
    Quantization,
)

CPU = Machine(kind=WorkerKind.CPU)
SPEC = CompressionSpec(
    model=ModelRef(repo_id="org/model"), ratio=0.25, calibration=CalibrationSpec(dataset="builtin:pydoc-topics")
)


def a_request(**fields: object) -> CompressionRequest:
    body = {"model": "org/name", "ratio": 0.25, "calibration": "org/data", **fields}
    return CompressionRequest.model_validate(body)


def test_given_values_are_kept() -> None:
    wanted = ComputeSpec(
        device="cpu",
        dtype="float16",
        batch_size=3,
        threads=1,
        loading=Loading.BLOCKWISE,
        quantization=Quantization.FOUR_BITS,
        pattern_safe=True,
    )
    assert wanted.model_fields_set == set(ComputeSpec.model_fields), "a new field must not get lost either"
    asked = SPEC.model_copy(update={"compute": wanted})
    assert resolve_spec(asked, CPU, values=1000).compute.model_dump() == wanted.model_dump()


@pytest.mark.parametrize(
    ("calibration", "share"),
    [
        ({"dataset": "org/text"}, OWN_SHARE),
        ({"dataset": "builtin:code"}, OWN_SHARE_OF_PART),
        ({"dataset": "builtin:code", "self_generated": 0.0}, 0.0),
        ({"dataset": "builtin:code", "self_generated": 0.5}, 0.5),
        ({"sources": [{"dataset": "builtin:code"}, {"self_generated": True}]}, None),
    ],
)
def test_an_open_share_of_own_text_is_filled_in(calibration: dict[str, object], share: float | None) -> None:
    asked = SPEC.model_copy(update={"calibration": CalibrationSpec.model_validate(calibration)})
    assert resolve_spec(asked, CPU, values=1000).calibration.self_generated == share


GENERAL_OF_96 = FITTED_TOKENS / (96 * 512)
"""All that the built-in general text has."""


@pytest.mark.parametrize(
    ("dataset", "shares"),
    [
        ("org/text", [1 - OWN_SHARE - GENERAL_SHARE, OWN_SHARE, GENERAL_SHARE]),
        (
            "builtin:pydoc-topics",
            [1 - OWN_SHARE_OF_BUILT_IN - GENERAL_OF_96, OWN_SHARE_OF_BUILT_IN, GENERAL_OF_96],
        ),
        ("builtin:general", [1 - OWN_SHARE, OWN_SHARE]),
        ("builtin:prose", [1 - OWN_SHARE_OF_PART, OWN_SHARE_OF_PART]),
    ],
)
def test_a_built_in_text_has_more_beside_it_and_never_its_own_documents_twice(
    dataset: str, shares: list[float]
) -> None:
    asked = SPEC.model_copy(update={"calibration": CalibrationSpec(dataset=dataset)})
    found = resolve_spec(asked, CPU, values=1000).calibration
    assert [source.share for source in found.mix] == shares


@pytest.mark.parametrize(
    ("calibration", "repeating", "beside", "beside_for_auto"),
    [
        ({"dataset": "org/text"}, 21, 6 + 4 + 21, 6 + 4 + 21 + 6),
        ({"dataset": "org/text", "general": 0.5}, 21, 6 + 4 + 21, 6 + 4 + 21 + 6),
        ({"dataset": "org/text", "self_generated": 0.5}, 0, 4, 4),
        ({"dataset": "org/text", "self_generated": 0.0}, 0, 0, 0),
        ({"dataset": "org/text", "self_generated": 0.0, "repeated": 0.5}, 28, 28, 28 + 4),
        ({"dataset": "org/text", "repeated": 0.0}, 0, 6 + 4, 6 + 4),
        ({"sources": [{"dataset": "org/text"}, {"self_generated": True}]}, 0, 4, 4),
        ({"sources": [{"dataset": "org/text"}, {"self_generated": True}], "repeated": 0.25}, 14, 4 + 14, 4 + 14 + 4),
    ],
)
def test_an_open_mix_has_repeated_passages(
    calibration: dict[str, object], repeating: int, beside: int, beside_for_auto: int
) -> None:
    """Beside the samples: those of the built-in text that judges, the model's own, the fitted and held-out copies."""
    asked = SPEC.model_copy(update={"calibration": CalibrationSpec.model_validate(calibration)})
    found = resolve_spec(asked, CPU, values=1000).calibration
    assert found.repeating == repeating
    assert found.beside_samples(Method.REFIT) == beside
    assert found.beside_samples(Method.AUTO) == beside_for_auto


@pytest.mark.parametrize(
    ("calibration", "samples", "of_the_text"),
    [
        ({"dataset": "org/text"}, 96, 64),
        ({"dataset": "builtin:pydoc-topics"}, 96, 20),
        ({"dataset": "org/text", "self_generated": 0.0}, 64, 64),
        ({"dataset": "org/text", "self_generated": 0.25}, 64, 48),
        ({"dataset": "org/text", "samples": 48}, 48, 32),
        ({"sources": ["org/text", {"self_generated": True}]}, 64, 32),
    ],
)
def test_other_text_comes_beside_the_usual_samples_where_the_mix_is_open(
    calibration: dict[str, object], samples: int, of_the_text: int
) -> None:
    asked = SPEC.model_copy(update={"calibration": CalibrationSpec.model_validate(calibration)})
    found = resolve_spec(asked, CPU, values=1000).calibration
    assert found.samples == samples
    assert round(found.mix[0].share * samples) == of_the_text


def resolved_by_block(calibration: dict[str, object]) -> ResolvedCalibration:
    compute = ComputeSpec(device="cpu", loading=Loading.BLOCKWISE)
    asked = SPEC.model_copy(update={"calibration": CalibrationSpec.model_validate(calibration), "compute": compute})
    return resolve_spec(asked, CPU, values=1000).calibration


def test_a_model_that_is_read_block_by_block_gets_built_in_text_instead() -> None:
    found = resolved_by_block({"dataset": "org/text", "config": "en", "column": "body"})
    text, general = found.mix
    assert (text.name, text.config, text.column, text.share) == (
        "org/text",
        "en",
        "body",
        1 - OWN_SHARE - GENERAL_SHARE,
    )
    assert (general.name, general.share) == ("builtin:general", OWN_SHARE + GENERAL_SHARE)
    assert found.generated_share == 0


@pytest.mark.parametrize(
    ("calibration", "names"),
    [
        ({"dataset": "org/text", "samples": 1024, "max_length": 1024}, ["org/text", "builtin:general"]),
        ({"dataset": "builtin:general"}, ["builtin:general"]),
        ({"dataset": "org/text", "self_generated": 0.0}, ["org/text"]),
    ],
)
def test_no_more_built_in_text_than_there_is(calibration: dict[str, object], names: list[str]) -> None:
    found = resolved_by_block(calibration)
    assert [source.name for source in found.mix if source.share] == names
    taken = [source.share * found.samples * found.max_length for source in found.mix[1:]]
    assert all(tokens <= FITTED_TOKENS + 1 for tokens in taken)


def test_as_published_there_is_one_text() -> None:
    asked = SPEC.model_copy(update={"method": MethodSpec(name=Method.LEAST_SQUARES, as_published=True)})
    found = resolve_spec(asked, CPU, values=1000).calibration
    assert (found.self_generated, found.judged_on, found.repeated) == (0.0, "none", 0.0)


@pytest.mark.parametrize(
    ("wanted", "values", "evaluated", "expected"),
    [
        (Loading.AUTO, 2**20, True, Loading.WHOLE),
        (Loading.AUTO, 9 * 2**20, True, Loading.BLOCKWISE),
        (Loading.AUTO, 9 * 2**20, False, Loading.WHOLE),
        (Loading.WHOLE, 2**60, True, Loading.WHOLE),
        (Loading.BLOCKWISE, 1, True, Loading.BLOCKWISE),
    ],
)
def test_whole_where_it_fits(wanted: Loading, values: int, evaluated: bool, expected: Loading) -> None:
    """With a margin of a quarter: 64 MiB hold 12.8 million values of float32 once, and 6.4 million twice."""
    machine = Machine(kind=WorkerKind.CPU, memory_bytes=64 * 2**20)
    update = {"compute": ComputeSpec(loading=wanted), "evaluation": EvaluationSpec(enabled=evaluated)}
    assert resolve_spec(SPEC.model_copy(update=update), machine, values=values).compute.loading is expected


@pytest.mark.parametrize(
    ("method", "limit", "loading", "expected"),
    [
        ({}, None, Loading.WHOLE, {"name": "auto", "time_budget_seconds": None}),
        ({}, 600.0, Loading.WHOLE, {"name": "auto", "time_budget_seconds": 300.0}),
        ({}, 604_800.0, Loading.WHOLE, {"name": "auto", "time_budget_seconds": None}),
        ({"time_budget_seconds": 9.0}, 600.0, Loading.WHOLE, {"name": "auto", "time_budget_seconds": 9.0}),
        ({}, None, Loading.BLOCKWISE, {"name": "least_squares", "time_budget_seconds": None}),
        ({"name": "auto"}, 600.0, Loading.BLOCKWISE, {"name": "auto", "time_budget_seconds": None}),
        ({"groups": 2}, None, Loading.WHOLE, {"name": "least_squares", "groups": 2}),
    ],
)
def test_an_open_method_is_decided(
    method: dict[str, object], limit: float | None, loading: Loading, expected: dict[str, object]
) -> None:
    update = {
        "method": MethodSpec.model_validate(method),
        "max_runtime_seconds": limit,
        "compute": ComputeSpec(device="cpu", loading=loading),
    }
    resolved = resolve_spec(SPEC.model_copy(update=update), CPU, values=1000).method
    assert {name: getattr(resolved, name) for name in expected} == expected


def test_a_resolved_specification_is_written_as_any_other() -> None:
    open_ones = {"calibration": {"samples": 64, "max_length": 512}, "compute": {"device": "cpu", "dtype": "float32"}}
    spec = CompressionSpec.model_validate(
        {
            "model": {"repo_id": "org/model"},
            "ratio": 0.25,
            "calibration": {"dataset": "org/text", "self_generated": 0.0, **open_ones["calibration"]},
            "method": {"name": "refit"},
            "compute": {**open_ones["compute"], "batch_size": 8, "threads": 1},
        }
    )
    assert ResolvedSpec.of(spec).model_dump_json() == spec.model_dump_json()


@pytest.mark.parametrize("missing", ["device", "dtype", "batch_size", "threads"])
def test_what_is_still_open_is_not_resolved(missing: str) -> None:
    compute = {"device": "cpu", "dtype": "float32", "batch_size": 8, "threads": 1}
    del compute[missing]
    calibration = {"dataset": "org/text", "samples": 64, "max_length": 512, "self_generated": 0.0}
    spec = a_request(calibration=calibration, compute=compute).to_spec()
    with pytest.raises(ValidationError, match=missing):
        ResolvedSpec.of(spec)


def test_constants_that_numerics_repeats() -> None:
    """Numerics knows tensors only, so it cannot read the table of the defaults."""
    assert defaults.LONGEST_ORDINARY == stream.LONGEST_ORDINARY
    assert defaults.LARGEST_WEIGHT == stream.LARGEST_WEIGHT


@pytest.mark.parametrize(
    "calibration",
    [
        {"dataset": "builtin:general"},
        {"dataset": "org/text"},
        {"sources": ["org/text", {"dataset": "org/other", "share": 0}], "judged_on": "none"},
        {"sources": ["org/text", {"dataset": "org/other", "share": 0}]},
    ],
)
def test_sequences_beside_the_samples_are_those_that_are_drawn(calibration: dict[str, object]) -> None:
    asked = SPEC.model_copy(update={"calibration": CalibrationSpec.model_validate(calibration)})
    found = resolve_spec(asked, CPU, values=1000).calibration
    drawn = sum(one.fit + one.held_out for one in sequence_counts(found, measure=0))
    repeating = found.repeating + found.repeating_held_out(Method.AUTO)
    assert found.samples + found.beside_samples(Method.AUTO) == drawn + repeating


@pytest.mark.parametrize(
    ("calibration", "judges"),
    [
        ({"dataset": "org/text"}, ["builtin:general"]),
        ({"dataset": "org/text", "self_generated": 0.0}, []),
        ({"dataset": "org/text", "self_generated": 0.0, "judged_on": "builtin:prose"}, ["builtin:prose"]),
        ({"dataset": "org/text", "judged_on": "none"}, []),
        ({"dataset": "builtin:general"}, []),
        ({"dataset": "org/text", "max_length": 16_384}, []),
    ],
)
def test_candidates_are_judged_on_a_text_that_no_fit_has_seen(
    calibration: dict[str, object], judges: list[str]
) -> None:
    asked = SPEC.model_copy(update={"calibration": CalibrationSpec.model_validate(calibration)})
    found = resolve_spec(asked, CPU, values=1000).calibration
    counts = zip(found.mix, sequence_counts(found, measure=0), strict=True)
    assert found.judging in {0, 4, 6}, "half as many as are held out of the samples"
    alone = [
        source.name for source, count in counts if source.name == found.judged_on and count.held_out == found.judging
    ]
    assert alone == judges
    assert found.judged_on is not None
