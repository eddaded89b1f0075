"""One text or a mix of sources: what may be said, what it means, and what is refused."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from replaceme_core.ledger.row_mapping import stored_spec
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.spec import CompressionRequest, CompressionSpec

TWO = [{"dataset": "org/a"}, {"dataset": "org/b"}]
OWN = {"self_generated": True}


def spec(**fields: object) -> CalibrationSpec:
    return CalibrationSpec.model_validate(fields)


def request(calibration: object) -> CompressionRequest:
    return CompressionRequest.model_validate({"model": "org/name", "ratio": 0.25, "calibration": calibration})


def mix(**fields: object) -> list[tuple[str, float]]:
    return [(source.name, pytest.approx(source.share)) for source in spec(**fields).mix]


def test_a_dataset_alone_is_a_mix_of_it_and_own_text() -> None:
    assert mix(dataset="org/a") == [("org/a", 1)]
    assert mix(dataset="org/a", self_generated=0.0) == [("org/a", 1)]
    assert mix(dataset="org/a", self_generated=0.25) == [("org/a", 0.75), ("self-generated", 0.25)]
    assert mix(dataset="org/a", self_generated=1.0) == [("org/a", 0), ("self-generated", 1)]
    text = spec(dataset="org/a", config="en", split="test", column="body", template="plain", self_generated=0.5).mix[0]
    assert (text.config, text.split, text.column, text.template) == ("en", "test", "body", "plain")


def test_a_text_that_only_judges_is_the_last_of_the_mix_with_no_share() -> None:
    mix = CalibrationSpec(dataset="org/a", self_generated=0.25, judged_on="builtin:prose").mix
    assert [(source.name, source.share) for source in mix][1:] == [("self-generated", 0.25), ("builtin:prose", 0)]
    for judged_on in ("none", None, "builtin:code"):
        assert len(CalibrationSpec(dataset="builtin:code", judged_on=judged_on).mix) == 1
    sources = CalibrationSpec.model_validate({"sources": [{"dataset": "org/a"}, {"dataset": "org/b", "share": 0}]})
    assert [source.share for source in sources.mix] == [1, 0]


def test_open_shares_are_equal_parts_of_what_the_others_leave() -> None:
    assert mix(sources=TWO) == [("org/a", 0.5), ("org/b", 0.5)]
    assert mix(sources=[*TWO, {**OWN, "share": 0.2}]) == [("org/a", 0.4), ("org/b", 0.4), ("self-generated", 0.2)]
    assert spec(sources=[*TWO, {**OWN, "share": 0.2}]).generated_share == 0.2
    assert spec(sources=TWO).generated_share == 0


@given(shares=st.lists(st.none() | st.floats(0.01, 0.12), min_size=2, max_size=8))
def test_shares_of_a_mix_add_up_to_1(shares: list[float | None]) -> None:
    sources = [{"dataset": f"org/{number}", "share": share} for number, share in enumerate(shares)]
    if None not in shares:
        sources[0]["share"] = None
    found = [source.share for source in spec(sources=sources).mix]
    assert sum(found) == pytest.approx(1)
    assert all(share > 0 for share in found)


def test_short_forms() -> None:
    assert request("org/a").calibration == spec(dataset="org/a")
    listed = request(["org/a", {"dataset": "org/b", "share": 0.25}, OWN]).calibration
    assert listed == spec(sources=[{"dataset": "org/a"}, {"dataset": "org/b", "share": 0.25}, OWN])
    assert request({"sources": TWO, "samples": 32, "seed": 4}).calibration.sources == spec(sources=TWO).sources
    (string, several, *_) = CompressionRequest.model_json_schema()["properties"]["calibration"]["anyOf"]
    assert string == {"type": "string"}
    assert several["type"] == "array"


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
)
def test_what_is_no_mix(fields: Mapping[str, object], field: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        spec(**fields)
    (error,) = caught.value.errors()
    context = error.get("ctx") or {}
    assert ".".join(map(str, [*error["loc"], *filter(None, [context.get("field")])])) == field


def test_one_dataset_may_come_in_two_splits() -> None:
    assert len(spec(sources=[{"dataset": "org/a"}, {"dataset": "org/a", "split": "test"}]).mix) == 2


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
    assert request(calibration).fingerprint() == fingerprint


def test_a_mix_has_a_fingerprint_of_its_own() -> None:
    found = [
        request(["org/a", "org/b"]),
        request({"sources": TWO}),
        request(["org/b", "org/a"]),
        request("org/a"),
        request([{"dataset": "org/a", "share": 0.25}, "org/b"]),
    ]
    assert len({one.fingerprint() for one in found}) == 4
    assert found[0].fingerprint() == found[1].fingerprint()


@pytest.mark.parametrize("calibration", ["org/a", {"dataset": "org/a", "self_generated": 0.0}, ["org/a", OWN]])
def test_a_stored_specification_reads_back(calibration: object) -> None:
    stored = stored_spec(request(calibration).to_spec())
    read = CompressionSpec.model_validate({**stored})
    assert read.calibration == request(calibration).calibration


def test_what_is_open_is_not_stored() -> None:
    """The version before refuses fields that it does not know, and a share that is null."""
    plain = stored_spec(request("org/a").to_spec())["calibration"]
    assert not {"self_generated", "sources"} & set(plain)
    none = stored_spec(request({"dataset": "org/a", "self_generated": 0}).to_spec())["calibration"]
    assert none["self_generated"] == 0
    assert len(stored_spec(request(TWO).to_spec())["calibration"]["sources"]) == 2
