"""What a request may say, what it means, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from replaceme_core.ledger.row_mapping import stored_spec
from replaceme_core.request.fields import BUILTIN_TEXTS
from replaceme_core.request.method import Method
from replaceme_core.request.removal import blocks_to_remove
from replaceme_core.request.spec import CompressionRequest, CompressionSpec

SMALLEST = {"model": "org/name", "ratio": 0.25, "calibration": "org/data"}


def request(**changes: object) -> CompressionRequest:
    """The smallest request with `changes`; `...` leaves a field out."""
    body = {key: value for key, value in {**SMALLEST, **changes}.items() if value is not ...}
    return CompressionRequest.model_validate(body)


def refused(**changes: object) -> set[str]:
    with pytest.raises(ValidationError) as caught:
        request(**changes)
    return {".".join(map(str, error["loc"])) for error in caught.value.errors()}


def test_short_forms_stand_for_the_long_ones() -> None:
    short = request(method="drop", output="org/result")
    long = request(
        model={"repo_id": "org/name"},
        calibration={"dataset": "org/data"},
        method={"name": "drop"},
        output={"repo_id": "org/result", "private": True},
    )
    assert short == long
    assert short.to_spec().method.name is Method.DROP


def test_a_specification_may_name_a_directory_and_a_request_may_not() -> None:
    body = {**request().to_spec().model_dump(mode="json"), "model": {"repo_id": "my model"}}
    assert CompressionSpec.model_validate(body).model.repo_id == "my model"
    assert refused(model="my model") == {"model.repo_id"}


@pytest.mark.parametrize("ratio", [0, 1, math.nan, "0.25", True, 10**400, [0.25]])
def test_ratio_is_a_number_between_0_and_1(ratio: object) -> None:
    assert refused(ratio=ratio) == {"ratio"}


def test_either_ratio_or_drop() -> None:
    assert refused(drop=[1]) == {""}
    assert refused(ratio=...) == {""}
    assert request(ratio=..., drop=[1]).drop == (1,)


@pytest.mark.parametrize("drop", [[], [0], [2, 2], "12", [1.0], [True], [10**40]])
def test_drop_names_blocks_once_and_never_block_0(drop: object) -> None:
    assert {path.partition(".")[0] for path in refused(ratio=..., drop=drop)} == {"drop"}


@pytest.mark.parametrize(
    "name",
    ["name", "org/", "a/b/c", "org/nämé", "org/a\n", "../x", "a--b/c", "a/b.git", "a/b-"],
)
def test_a_model_is_a_repository(name: str) -> None:
    assert refused(model=name) == {"model.repo_id"}


@pytest.mark.parametrize(
    "text",
    [
        *("file:../a.txt", "file:a/../../b.txt", "file:/etc/a.txt", "file:./a.txt", "file:a.csv", "file:.txt", "file:"),
        *("file:a\n.txt", "file:a\0.txt", "builtin:other", "builtin:", "data", ""),
    ],
)
def test_calibration_text_that_is_refused(text: str) -> None:
    assert refused(calibration=text) == {"calibration.dataset"}


@pytest.mark.parametrize("text", [*BUILTIN_TEXTS, "file:a.txt", "file:deep/er/..b c.jsonl", "org/data"])
def test_calibration_text_that_is_taken(text: str) -> None:
    assert request(calibration=text).calibration.dataset == text


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"foo": 1}, "foo"),
        ({"model": {"repo_id": "a/b", "sha": "x"}}, "model.sha"),
        ({"calibration": {"dataset": "a/b", "config": "nul\0"}}, "calibration.config"),
        ({"calibration": {"dataset": "a/b", "split": "\ud800"}}, "calibration.split"),
        ({"calibration": {"dataset": "a/b", "samples": 64.0}}, "calibration.samples"),
        ({"calibration": {"dataset": "a/b", "seed": 2**31}}, "calibration.seed"),
        ({"calibration": {"dataset": "a/b", "self_generated": 1.5}}, "calibration.self_generated"),
        ({"method": {"ridge": math.nan}}, "method.ridge"),
        ({"method": {"groups": 0}}, "method.groups"),
        ({"method": {"name": "cosine", "loss": "l2"}}, "method.loss"),
        ({"output": {"private": "yes"}}, "output.private"),
        ({"compute": {"quantization": "2bit"}}, "compute.quantization"),
        ({"priority": 10}, "priority"),
        ({"max_queue_seconds": 0}, "max_queue_seconds"),
        ({"max_runtime_seconds": math.inf}, "max_runtime_seconds"),
        ({"max_runtime_seconds": 1e9}, "max_runtime_seconds"),
        ({"labels": {"a": "b\n"}}, "labels.a"),
        ({"labels": {str(i): "x" for i in range(33)}}, "labels"),
    ],
)
def test_types_are_strict_and_fields_known(changes: dict[str, object], path: str) -> None:
    assert refused(**changes) == {path}


def test_a_fingerprint_is_about_the_meaning() -> None:
    plain = request().fingerprint()
    assert plain == request(model={"repo_id": "org/name"}, priority=5, labels={}, drop=None).fingerprint()
    assert request(ratio=..., drop=[3, 1]).fingerprint() == request(ratio=..., drop=[1, 3]).fingerprint()
    others = [request(ratio=0.5), request(priority=6), request(method={"ridge": 0}), request(output={"private": False})]
    assert len({plain, *(other.fingerprint() for other in others)}) == 5


@given(ratio=st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True), blocks=st.integers(2, 500))
def test_a_ratio_removes_at_least_one_block_and_never_all(ratio: float, blocks: int) -> None:
    removed = blocks_to_remove(ratio, blocks)
    assert 1 <= removed <= blocks - 1
    assert abs(removed - ratio * blocks) <= 1


def test_the_schema_shows_the_short_forms() -> None:
    properties = CompressionRequest.model_json_schema()["properties"]
    for name in ("model", "calibration", "method", "output"):
        assert {"type": "string"} in properties[name]["anyOf"], name
    assert properties["drop"]["anyOf"][0]["items"]["type"] == "integer"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"name": "drop", "groups": 2}}, "groups is for least_squares and cosine and refit, not for drop"),
        ({"method": {"name": "refit", "loss": "light"}}, "loss is for cosine, not for refit"),
        ({"method": {"loss": "light"}}, "loss is for cosine; name the method"),
        (
            {"method": {"groups": 2, "time_budget_seconds": 9.0}},
            "time_budget_seconds is for auto; name the method",
        ),
        ({"ratio": ..., "drop": [1, 3], "method": {"groups": 2}}, "blocks named by drop are grouped as they lie"),
    ],
)
def test_an_option_of_another_method_is_an_error(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        request(**changes)
    (error,) = caught.value.errors()
    assert error["ctx"]["field"] in ("groups", "loss", "method.groups", "time_budget_seconds")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Method.AUTO),
        ({"method": None}, Method.AUTO),
        ({"method": {"ridge": 0.1}}, Method.AUTO),
        ({"method": {"groups": 2}}, Method.LEAST_SQUARES),
        ({"method": {"ridge_later": 0.1}}, Method.AUTO),
        ({"compute": {"quantization": "4bit"}}, Method.LEAST_SQUARES),
    ],
)
def test_without_a_name_the_best_method_that_the_request_allows(changes: dict[str, object], expected: Method) -> None:
    made = request(**changes)
    assert made.expected_method is expected
    assert CompressionSpec.model_validate_json(made.to_spec().model_dump_json()) == made.to_spec()


def test_an_open_method_that_fits_nothing_is_an_error() -> None:
    with pytest.raises(ValidationError, match="4 and 8 bits are for"):
        request(method={"time_budget_seconds": 9.0}, compute={"quantization": "4bit"})


@pytest.mark.parametrize("method", ["refit", "auto", "merge"])
def test_weights_that_are_tried_out_cannot_be_quantised(method: str) -> None:
    assert refused(method=method, compute={"quantization": "4bit"}) == {""}
    assert request(method="cosine", compute={"quantization": "4bit"}).compute.quantization == "4bit"


def test_a_job_that_asks_for_nothing_new_is_stored_as_the_version_before_reads_it() -> None:
    plain, asking = (request(compute={"quantization": bits}).to_spec() for bits in (None, "8bit"))
    assert "quantization" not in stored_spec(plain)["compute"]
    assert stored_spec(asking)["compute"]["quantization"] == "8bit"
    assert "self_generated" not in stored_spec(plain)["calibration"]
    writing = request(calibration={"dataset": "org/text", "self_generated": 0.5}).to_spec()
    assert stored_spec(writing)["calibration"]["self_generated"] == 0.5


@pytest.mark.parametrize("given", [1, None])
def test_one_pass_is_what_every_job_makes(given: int | None) -> None:
    """A default of the time when a calibration could be divided among workers."""
    assert request(compute={"shards": given, "threads": 2}) == request(compute={"threads": 2})
    assert "shards" not in request(compute={"shards": given}).to_spec().compute.model_dump()


@pytest.mark.parametrize("given", [0, 2, True, 1.0, "1"])
def test_a_calibration_is_not_divided_among_workers(given: object) -> None:
    with pytest.raises(ValidationError, match="sharded calibration was removed"):
        request(compute={"shards": given})
