"""What a request may say, what it means, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from replaceme_core.ledger.records import stored_spec
from replaceme_core.request.fields import BUILTIN_TEXTS
from replaceme_core.request.method import Method
from replaceme_core.request.removal import blocks_to_remove
from replaceme_core.request.spec import CompressionRequest, CompressionSpec, EvaluationSpec

SMALLEST = {"model": "org/name", "ratio": 0.25, "calibration": "org/data"}
TWO = [{"dataset": "org/a"}, {"dataset": "org/b"}]
OWN = {"self_generated": True}


def request(**changes: object) -> CompressionRequest:
    """The smallest request with `changes`; `...` leaves a field out."""
    body = {key: value for key, value in {**SMALLEST, **changes}.items() if value is not ...}
    return CompressionRequest.model_validate(body)


def refused(match: str | None = None, **changes: object) -> set[str]:
    """The paths of all errors; one of a whole object is at the field that it names."""
    with pytest.raises(ValidationError, match=match) as caught:
        request(**changes)
    return {
        ".".join(map(str, [*error["loc"], *filter(None, [error.get("ctx", {}).get("field")])]))
        for error in caught.value.errors()
    }


def test_short_forms_stand_for_the_long_ones() -> None:
    short = request(method="drop", output="org/result")
    long = request(
        model={"repo_id": "org/name"},
        calibration={"dataset": "org/data"},
        method={"name": "drop"},
        output={"repo_id": "org/result", "private": True},
    )
    assert short == long
    assert request(calibration=["org/a", OWN]) == request(calibration={"sources": [{"dataset": "org/a"}, OWN]})
    properties = CompressionRequest.model_json_schema()["properties"]
    for name in ("model", "calibration", "method", "output"):
        assert {"type": "string"} in properties[name]["anyOf"], name
    assert properties["calibration"]["anyOf"][1]["type"] == "array"
    assert properties["drop"]["anyOf"][0]["items"]["type"] == "integer"


def test_the_schema_says_how_long_a_list_may_be() -> None:
    tasks = EvaluationSpec.model_json_schema()["properties"]["tasks"]
    assert (tasks["minItems"], tasks["maxItems"]) == (0, 64)


def test_a_specification_may_name_a_directory_and_a_request_may_not() -> None:
    body = {**request().to_spec().model_dump(mode="json"), "model": {"repo_id": "my model"}}
    assert CompressionSpec.model_validate(body).model.repo_id == "my model"
    assert refused(model="my model") == {"model.repo_id"}


@pytest.mark.parametrize("ratio", [0, 1, math.nan, "0.25", True, 10**400, [0.25]])
def test_ratio_is_a_number_between_0_and_1(ratio: object) -> None:
    assert refused(ratio=ratio) == {"ratio"}


def test_either_ratio_or_drop() -> None:
    assert refused(drop=[1]) == refused(ratio=...) == {"ratio"}
    assert request(ratio=..., drop=[3, 1]).drop == (1, 3)


@pytest.mark.parametrize("drop", [[], [0], [2, 2], "12", [1.0], [True], [10**40], [*range(1, 10_002)]])
def test_drop_names_blocks_once_and_never_block_0(drop: object) -> None:
    (path,) = refused(ratio=..., drop=drop)
    assert path.partition(".")[0] == "drop"


@pytest.mark.parametrize("name", ["name", "org/", "a/b/c", "org/nämé", "org/a\n", "../x", "a--b/c", "a/b.git", "a/b-"])
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
        ({"evaluation": {"tasks": ["piqa", "piqa"]}}, "evaluation.tasks"),
        ({"evaluation": {"tasks": ["../piqa"]}}, "evaluation.tasks.0"),
        ({"evaluation": {"tasks": ["piqa"], "enabled": False}}, "evaluation.tasks"),
        ({"evaluation": {"tasks": ["piqa"], "task_limit": 0}}, "evaluation.task_limit"),
        ({"heal": {}}, "heal.tokens"),
        ({"heal": {"tokens": 9, "dataset": {"self_generated": True}}}, "heal.dataset"),
        ({"heal": {"tokens": 9, "dataset": {"dataset": "org/a", "share": 0.5}}}, "heal.dataset.share"),
        ({"heal": {"tokens": 9}, "compute": {"loading": "blockwise"}}, "heal"),
    ],
    ids=str,
)
def test_types_are_strict_and_fields_known(changes: dict[str, object], path: str) -> None:
    assert refused(**changes) == {path}


@pytest.mark.parametrize("device", ["gpu", "foo:0", "meta"])
def test_a_device_is_one_of_torch_that_computes(device: str) -> None:
    """What a worker found is kept all the same."""
    assert refused(f"expected cpu, cuda, mps, .*, got '{device}'", compute={"device": device}) == {"compute.device"}
    assert request(compute={"device": "cuda:1"}).compute.device == "cuda:1"
    body = {**request().to_spec().model_dump(mode="json"), "compute": {"device": device}}
    assert CompressionSpec.model_validate(body).compute.device == device


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({}, "dataset", "neither is given"),
        ({"dataset": "org/a", "sources": TWO}, "dataset", "both are given"),
        ({"sources": TWO, "split": "test"}, "split", "split belongs to one of the sources"),
        ({"sources": TWO, "self_generated": 0.5}, "self_generated", "belongs to one of the sources"),
        ({"sources": [{}, *TWO]}, "sources.0.dataset", "neither is given"),
        ({"sources": [{"dataset": "org/a", **OWN}]}, "sources.0.dataset", "both are given"),
        ({"sources": [*TWO, {**OWN, "column": "text"}]}, "sources.2.column", "column is for a dataset"),
        ({"sources": [*TWO, OWN, OWN]}, "sources.3", "one source at most is self-generated; sources 2 and 3 are"),
        ({"sources": [OWN]}, "sources", "at least one source is a text"),
        ({"sources": [*TWO, {"dataset": "org/a", "template": "plain"}]}, "sources.2", "org/a is given twice"),
        ({"sources": [{"dataset": "org/a", "share": 0.5}, {"dataset": "org/b", "share": 0.4}]}, "sources", "to 0.9"),
        ({"sources": [{"dataset": "org/a", "share": 1.0}, {"dataset": "org/b"}]}, "sources.1", "up to 1, which leaves"),
        ({"sources": TWO, "samples": 15}, "samples", "of 15 samples 1 are held out.*ask for at least 16"),
        ({"sources": []}, "sources", "at least 1 item"),
        ({"sources": [{"dataset": f"org/{number}"} for number in range(9)]}, "sources", "at most 8 items"),
        ({"sources": [{"dataset": "org/a", "share": 0}]}, "sources", "a text with a share above 0"),
        ({"sources": [{"dataset": "org/a", "share": -0.1}]}, "sources.0.share", "greater than or equal to 0"),
        ({"sources": [{"dataset": "org/a"}, "builtin:none"]}, "sources.1.dataset", "no built-in text"),
    ],
    ids=str,
)
def test_what_is_no_mix(fields: dict[str, object], field: str, message: str) -> None:
    assert refused(message, calibration=fields) == {f"calibration.{field}"}


def test_open_shares_are_equal_parts_of_what_the_others_leave() -> None:
    for sources, shares in (
        (TWO, [0.5, 0.5]),
        ([*TWO, {**OWN, "share": 0.2}], [0.4, 0.4, 0.2]),
        (
            [{"dataset": "org/a"}, {"dataset": "org/a", "split": "test"}, {"dataset": "org/b", "share": 0}],
            [0.5, 0.5, 0],
        ),
    ):
        assert [source.share for source in request(calibration=sources).calibration.mix] == pytest.approx(shares)


@given(ratio=st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True), blocks=st.integers(2, 500))
def test_a_ratio_removes_at_least_one_block_and_never_all(ratio: float, blocks: int) -> None:
    removed = blocks_to_remove(ratio, blocks)
    assert 1 <= removed <= blocks - 1
    assert abs(removed - ratio * blocks) <= 1


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (
            {"method": {"name": "drop", "groups": 2}},
            "method.groups",
            "least_squares and cosine and refit, not for drop",
        ),
        ({"method": {"name": "refit", "loss": "light"}}, "method.loss", "loss is for cosine, not for refit"),
        ({"method": {"loss": "light"}}, "method.loss", "loss is for cosine; name the method"),
        ({"method": {"groups": 2, "time_budget_seconds": 9.0}}, "method.time_budget_seconds", "for auto; name the"),
        ({"ratio": ..., "drop": [1, 3], "method": {"groups": 2}}, "method.groups", "are grouped as they lie"),
        # weights that are tried out cannot be quantised
        *(
            ({"method": method, "compute": {"quantization": "4bit"}}, "compute.quantization", "4 and 8 bits are for")
            for method in ("refit", "auto", "merge", {"time_budget_seconds": 9.0})
        ),
    ],
    ids=str,
)
def test_an_option_of_another_method_is_an_error(changes: dict[str, object], field: str, words: str) -> None:
    assert refused(words, **changes) == {field}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Method.AUTO),
        ({"method": None}, Method.AUTO),
        ({"method": {"ridge": 0.1}}, Method.AUTO),
        ({"method": {"groups": 2}}, Method.LEAST_SQUARES),
        ({"method": {"ridge_later": 0.1}}, Method.AUTO),
        ({"compute": {"quantization": "4bit"}}, Method.LEAST_SQUARES),
        ({"method": "cosine", "compute": {"quantization": "4bit"}}, Method.COSINE),
    ],
    ids=str,
)
def test_without_a_name_the_best_method_that_the_request_allows(changes: dict[str, object], expected: Method) -> None:
    made = request(**changes)
    assert made.expected_method is expected
    assert CompressionSpec.model_validate_json(made.to_spec().model_dump_json()) == made.to_spec()


def test_a_fingerprint_is_about_the_meaning() -> None:
    alike = (
        (request(), request(model={"repo_id": "org/name"}, priority=5, labels={}, drop=None)),
        (request(ratio=..., drop=[3, 1]), request(ratio=..., drop=[1, 3])),
        (request(calibration=["org/a", "org/b"]), request(calibration={"sources": TWO})),
    )
    for one, other in alike:
        assert one.fingerprint() == other.fingerprint()
    changes = (
        *({"ratio": 0.5}, {"priority": 6}, {"method": {"ridge": 0}}, {"output": {"private": False}}),
        *(
            {"calibration": texts}
            for texts in ("org/a", ["org/b", "org/a"], [{"dataset": "org/a", "share": 0.25}, "org/b"])
        ),
    )
    others = [request(**change) for change in changes]  # type: ignore[arg-type]
    assert len({one.fingerprint() for one in (*others, *(first for first, _ in alike))}) == len(changes) + len(alike)


@pytest.mark.parametrize(
    ("calibration", "fingerprint"),
    [
        ("org/data", "209fe08f8bb2d11a47d43525309f4cf650d4b3a43bc1c3b2b09da827e3ba5fb5"),
        (
            {"dataset": "org/data", "self_generated": 0.5, "samples": 64},
            "7e5a19dcc30ed937be247fdc2d11cb6861c22746bbb3962baa03574f2d95bae0",
        ),
        (
            {"dataset": "file:a.txt", "config": "en", "seed": 3},
            "3b49b043ea3046419de0d1c28ccbca720879324066f687eff7f9fe7d02374b47",
        ),
    ],
)
def test_requests_of_earlier_versions_keep_their_fingerprint(calibration: object, fingerprint: str) -> None:
    assert request(calibration=calibration).fingerprint() == fingerprint


@pytest.mark.parametrize(
    ("changes", "part", "stored"),
    [
        ({"compute": {"quantization": "8bit"}}, "compute", {"quantization"}),
        ({"calibration": {"dataset": "org/a", "self_generated": 0.0}}, "calibration", {"self_generated"}),
        ({"calibration": ["org/a", OWN]}, "calibration", {"sources"}),
    ],
)
def test_what_is_open_is_not_stored_and_all_else_reads_back(
    changes: dict[str, object], part: str, stored: set[str]
) -> None:
    """The version before refuses fields that it does not know, and a share that is null."""
    plain, asking = request().to_spec(), request(**changes).to_spec()
    assert not stored & set(stored_spec(plain)[part])
    assert stored <= set(stored_spec(asking)[part])
    for spec in (plain, asking):
        assert CompressionSpec.model_validate(stored_spec(spec)) == spec


def test_a_plain_job_is_stored_with_no_part_that_the_version_before_refuses() -> None:
    parts = {"model", "ratio", "drop", "calibration", "method", "evaluation", "output", "compute", "labels"}
    assert set(stored_spec(request().to_spec())) == parts
    healed = request(heal={"tokens": 1000}).to_spec()
    assert CompressionSpec.model_validate(stored_spec(healed)) == healed


@pytest.mark.parametrize("given", [1, None])
def test_one_pass_is_what_every_job_makes(given: int | None) -> None:
    """A default of the time when a calibration could be divided among workers."""
    assert request(compute={"shards": given, "threads": 2}) == request(compute={"threads": 2})
    assert "shards" not in request(compute={"shards": given}).to_spec().compute.model_dump()


@pytest.mark.parametrize("given", [0, 2, True, 1.0, "1"])
def test_a_calibration_is_not_divided_among_workers(given: object) -> None:
    assert refused("sharded calibration was removed", compute={"shards": given}) == {"compute.shards"}
