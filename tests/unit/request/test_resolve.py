"""What a specification leaves open is filled in once, by the facts of a machine."""

import pytest
from pydantic import ValidationError

from replaceme_core.engine.text.drawing import sequence_counts
from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import WorkerKind
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.gate import DeepestCut, GateSpec
from replaceme_core.request.method import Method, MethodSpec
from replaceme_core.request.resolve import Machine, ResolvedSpec, resolve_spec
from replaceme_core.request.spec import (
    CompressionSpec,
    ComputeSpec,
    Dtype,
    EvaluationSpec,
    HealedWeights,
    HealSpec,
    Loading,
    ModelRef,
    Quantization,
)

SPEC = CompressionSpec(
    model=ModelRef(repo_id="org/model"), ratio=0.25, calibration=CalibrationSpec(dataset="builtin:pydoc-topics")
)


def resolved(*, memory: int | None = None, values: int = 1000, **update: object) -> ResolvedSpec:
    """`SPEC` with these fields, on a CPU."""
    machine = Machine(kind=WorkerKind.CPU, memory_bytes=memory)
    return resolve_spec(SPEC.model_copy(update=update), machine, values=values)


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
    assert resolved(compute=wanted).compute.model_dump() == wanted.model_dump()


OWN, OTHER = {"self_generated": True}, {"dataset": "org/other", "share": 0}
GENERAL, BY_BLOCK = "builtin:general", {"compute": ComputeSpec(loading=Loading.BLOCKWISE)}
USUAL = [("org/text", 32, 12), ("self-generated", 21, 6), (GENERAL, 31, 6)]
ALONE = [("org/text", 56, 8)]
HALF_OWN = [("org/text", 28, 8), ("self-generated", 28, 4), (GENERAL, 0, 4)]


@pytest.mark.parametrize(
    ("calibration", "more", "drawn", "repeating"),
    [
        # one text: a quarter of the samples is the model's own, three eighths the general text; both judge as well
        ({"dataset": "org/text"}, {}, USUAL, 21),
        ({"dataset": "builtin:pydoc-topics"}, {}, [("builtin:pydoc-topics", 32, 12), *USUAL[1:]], 21),
        ({"samples": 48}, {}, [("org/text", 16, 6), ("self-generated", 10, 3), (GENERAL, 16, 3)], 10),
        ({"general": 0.5}, {}, [("org/text", 21, 12), ("self-generated", 21, 6), (GENERAL, 42, 6)], 21),
        ({"general": 0.875}, {}, [("org/text", 11, 12), (GENERAL, 73, 6)], 21),  # which leaves no quarter
        ({"repeated": 0.0}, {}, USUAL, 0),
        ({"judged_on": "none"}, {}, [("org/text", 32, 6), ("self-generated", 21, 6), (GENERAL, 31, 6)], 21),
        # a share of own text is named: nothing else is added
        ({"self_generated": 0.5}, {}, HALF_OWN, 0),
        ({"self_generated": 1.0}, {}, [("org/text", 0, 4), ("self-generated", 56, 8), (GENERAL, 0, 4)], 0),
        ({"self_generated": 0.0}, {}, ALONE, 0),
        ({"self_generated": 0.0, "repeated": 0.5}, {}, ALONE, 28),
        ({"self_generated": 0.0, "general": 0.25, "samples": 16}, {}, [("org/text", 11, 1), (GENERAL, 3, 1)], 0),
        ({"self_generated": 0.0, "judged_on": "builtin:prose"}, {}, [*ALONE, ("builtin:prose", 0, 4)], 0),
        # never the documents of built-in text under two names
        ({"dataset": GENERAL}, {}, [(GENERAL, 63, 12), ("self-generated", 21, 6)], 21),
        ({"dataset": "builtin:code"}, {}, [("builtin:code", 63, 12), ("self-generated", 21, 6)], 21),
        # no more of the general text than it has
        ({"max_length": 8_192}, {}, [("org/text", 61, 12), ("self-generated", 21, 1), (GENERAL, 2, 1)], 21),
        # and none where it has too few of such sequences to judge
        ({"max_length": 16_384}, {}, [("org/text", 63, 12), ("self-generated", 21, 1)], 21),
        # a text that is named for judging judges, however long its sequences are
        ({"sources": ["org/text", OTHER], "max_length": 16_384}, {}, [*ALONE, ("org/other", 0, 1)], 0),
        # several texts
        ({"sources": ["org/text", OWN]}, {}, HALF_OWN, 0),
        ({"sources": ["org/text", OWN], "repeated": 0.25}, {}, HALF_OWN, 14),
        ({"sources": ["org/text", OTHER]}, {}, [*ALONE, ("org/other", 0, 4), (GENERAL, 0, 4)], 0),
        ({"sources": ["org/text", OTHER], "judged_on": "none"}, {}, [*ALONE, ("org/other", 0, 4)], 0),
        # read block by block, a model writes nothing; as published there is one text
        ({"dataset": "org/text"}, BY_BLOCK, [("org/text", 49, 12), (GENERAL, 35, 6)], 21),
        (
            {"samples": 1024, "max_length": 1024},
            BY_BLOCK,
            [("org/text", 879, 128), (GENERAL, 17, 11)],
            224,
        ),
        ({"dataset": GENERAL}, BY_BLOCK, [(GENERAL, 84, 12)], 21),
        ({}, {"method": MethodSpec(name=Method.LEAST_SQUARES, as_published=True)}, ALONE, 0),
    ],
    ids=str,
)
def test_what_calibrates_and_judges(
    calibration: dict[str, object], more: dict[str, object], drawn: list[tuple[str, int, int]], repeating: int
) -> None:
    """By source the sequences that are fitted on and held out, and how many repeat passages."""
    given = calibration if "sources" in calibration else {"dataset": "org/text", **calibration}
    found = resolved(calibration=CalibrationSpec.model_validate(given), **more).calibration
    counts = zip(found.mix, sequence_counts(found, measure=0), strict=True)
    is_open = "sources" not in calibration and "self_generated" not in calibration and "method" not in more
    assert found.samples == calibration.get("samples", 96 if is_open else 64)
    assert [(source.name, count.fit, count.held_out) for source, count in counts] == drawn
    assert found.repeating == repeating
    made = repeating + (2 * found.judging if repeating else 0)  # passages and questions judge where passages calibrate
    assert found.samples + found.beside_samples == sum(fit + held_out for _, fit, held_out in drawn) + made


def test_a_sequence_of_each_text_must_be_held_out() -> None:
    given = {"dataset": "org/text", "self_generated": 0.0, "general": 0.25, "samples": 9}
    with pytest.raises(InvalidInput, match=r"of 9 samples 1 are held out, and each of the 2 .* at least 16$") as caught:
        resolved(calibration=CalibrationSpec.model_validate(given))
    assert (caught.value.field, caught.value.value) == ("calibration.samples", 9)


def test_usual_sequences_are_no_longer_than_a_model_can_read() -> None:
    for longest, length in ((None, 512), (256, 256), (2048, 512)):
        found = resolve_spec(SPEC, Machine(kind=WorkerKind.CPU), values=1000, longest=longest)
        assert found.calibration.max_length == length


def test_options_of_a_text_stay() -> None:
    text = {"config": "en", "split": "test", "column": "body", "template": "plain"}
    found = resolved(calibration=CalibrationSpec.model_validate({"dataset": "org/text", **text})).calibration.mix[0]
    assert {name: getattr(found, name) for name in text} == text


@pytest.mark.parametrize(
    ("wanted", "dtype", "values", "evaluated", "expected"),
    [
        (Loading.AUTO, "float32", 2**20, True, Loading.WHOLE),
        (Loading.AUTO, "float32", 9 * 2**20, True, Loading.BLOCKWISE),
        (Loading.AUTO, "float32", 9 * 2**20, False, Loading.WHOLE),
        (Loading.AUTO, "bfloat16", 9 * 2**20, False, Loading.WHOLE),
        (Loading.AUTO, "bfloat16", 20 * 2**20, False, Loading.BLOCKWISE),  # the result is verified in float32
        (Loading.WHOLE, "float32", 2**60, True, Loading.WHOLE),
        (Loading.BLOCKWISE, "float32", 1, True, Loading.BLOCKWISE),
    ],
)
def test_whole_where_it_fits(wanted: Loading, dtype: Dtype, values: int, evaluated: bool, expected: Loading) -> None:
    """With a margin of a quarter: 64 MiB hold 12.8 million values of float32 once, and 6.4 million twice."""
    update = {"compute": ComputeSpec(loading=wanted, dtype=dtype), "evaluation": EvaluationSpec(enabled=evaluated)}
    assert resolved(memory=64 * 2**20, values=values, **update).compute.loading is expected


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
    update = {"method": MethodSpec.model_validate(method), "max_runtime_seconds": limit}
    found = resolved(compute=ComputeSpec(loading=loading), **update).method
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(("removed", "seconds"), [(1, 300.0), (3, 150.0), (10, 75.0)])
def test_a_search_divides_the_time_among_its_trials(removed: int, seconds: float) -> None:
    limited = SPEC.model_copy(update={"max_runtime_seconds": 600.0})
    gate = GateSpec.model_validate({"perplexity_ratio": {"max": 1.6}})
    search = limited.model_copy(update={"ratio": DeepestCut(max=0.5), "gate": gate})
    found = [
        resolve_spec(spec, Machine(kind=WorkerKind.CPU), values=1000, removed=removed).method.time_budget_seconds
        for spec in (search, limited)
    ]
    assert found == [seconds, 300.0]


@pytest.mark.parametrize("missing", [None, "device", "dtype", "batch_size", "threads"])
def test_a_stored_specification_is_resolved_where_nothing_is_open(missing: str | None) -> None:
    """It is written as any other."""
    compute = {"device": "cpu", "dtype": "float32", "batch_size": 8, "threads": 1}
    spec = CompressionSpec.model_validate(
        {
            "model": {"repo_id": "org/model"},
            "ratio": 0.25,
            "calibration": {"dataset": "org/text", "samples": 64, "max_length": 512, "self_generated": 0.0},
            "method": {"name": "refit"},
            "compute": {name: value for name, value in compute.items() if name != missing},
        }
    )
    if missing is None:
        assert ResolvedSpec.model_validate(spec.model_dump()).model_dump_json() == spec.model_dump_json()
        return
    with pytest.raises(ValidationError, match=missing):
        ResolvedSpec.model_validate(spec.model_dump())


@pytest.mark.parametrize(
    ("memory", "asked", "weights"),
    [(None, None, "all"), (20_000, None, "all"), (19_000, None, "some"), (1, "all", "all"), (None, "some", "some")],
)
def test_all_weights_are_trained_where_their_optimiser_fits(
    memory: int | None, asked: str | None, weights: str
) -> None:
    """A thousand values: 16 bytes for each, and a quarter more."""
    compute = ComputeSpec(loading=Loading.WHOLE)
    heal = HealSpec(tokens=5000, weights=None if asked is None else HealedWeights(asked))
    found = resolved(memory=memory, heal=heal, compute=compute).heal
    assert found is not None
    assert (str(found.weights), found.tokens, found.learning_rate) == (weights, 5000, 2e-5)
    again = found.model_copy(update={"learning_rate": 0.01})
    assert resolved(heal=again).heal == again, "what was resolved stays"
    assert resolved().heal is None


def test_a_model_that_does_not_fit_as_a_whole_cannot_be_healed() -> None:
    with pytest.raises(InvalidInput, match="leave heal out") as caught:
        resolved(memory=100, heal=HealSpec(tokens=5000))
    assert caught.value.field == "heal"
