"""What may be removed: how many blocks, and what keeps the pattern of a model's kinds of blocks."""

import pytest

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import InvalidInput
from replaceme_core.families.table import FAMILIES
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.request.method import Method
from replaceme_core.request.removal import Allows, blocks_to_remove, depths_of, keep_pattern, ratio_of
from replaceme_core.request.spec import CompressionSpec
from tests.fixtures.models.tiny import BY_NAME, tiny_config

GATE = {"perplexity_ratio": {"max": 1.6}}
OUTLINE = ModelOutline(layout=FAMILIES["llama"], blocks=30, hidden_size=576)


@pytest.mark.parametrize(
    ("fields", "depths"),
    [
        ({"ratio": 0.25}, [8]),
        ({"drop": [3, 4]}, [2]),
        ({"ratio": {"max": 0.1}, "gate": GATE}, [1, 2, 3]),
        ({"ratio": {"max": 0.001}, "gate": GATE}, [1]),
        ({"ratio": {"max": 0.2}, "gate": GATE, "method": {"name": "cosine", "groups": 4}}, [4, 5, 6]),
        ({"ratio": {"max": 0.999}, "gate": GATE, "method": {"name": "cosine", "groups": 14}}, [14, 15, 16]),
    ],
)
def test_depths(fields: dict[str, object], depths: list[int]) -> None:
    spec = a_spec(**fields)
    assert depths_of(spec, OUTLINE) == depths


def test_groups_that_no_depth_has() -> None:
    spec = a_spec(ratio={"max": 0.1}, gate=GATE, method={"name": "cosine", "groups": 4})
    with pytest.raises(InvalidInput, match="in at most 3 groups"):
        depths_of(spec, OUTLINE)


@pytest.mark.parametrize("blocks", [2, 6, 30, 61, 126])
def test_every_depth_has_a_ratio(blocks: int) -> None:
    for depth in range(1, blocks):
        assert blocks_to_remove(ratio_of(depth, blocks), blocks) == depth


def rule(name: str, **fields: object) -> tuple[CompressionSpec, Allows | None]:
    variant = BY_NAME[name]
    body: dict[str, object] = {
        "model": {"repo_id": "org/tiny"},
        "calibration": {"dataset": "builtin:general"},
        "compute": {"pattern_safe": True},
        **({} if "drop" in fields else {"ratio": 0.33}),
        **fields,
    }
    spec = CompressionSpec.model_validate(body)
    return keep_pattern(spec, tiny_config(variant), FAMILIES[variant.model_type])


def test_only_where_it_is_asked_for_and_there_is_a_pattern() -> None:
    for name, fields in (("gemma2", {"compute": {}}), ("llama", {}), ("llama", {"method": {"name": "refit"}})):
        assert rule(name, **fields)[1] is None
    _, allows = rule("gemma2")
    assert allows is not None
    assert (allows([2, 3]), allows([2])) == (True, False)


def test_named_blocks_that_break_it_are_refused() -> None:
    assert rule("gemma2", drop=[2, 3])[1] is not None
    with pytest.raises(InvalidInput, match="without blocks 2 the kinds of the others") as refused:
        rule("gemma2", drop=[2])
    assert refused.value.field == "drop"


def test_a_model_that_follows_no_step_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\(no_rope_layers, layer_types\) follow no step") as refused:
        rule("smollm3-sliding")
    assert refused.value.field == "compute.pattern_safe"


@pytest.mark.parametrize(
    "method",
    [
        {"name": "auto"},
        {"name": "refit"},
        {"name": "least_squares", "groups": 2},
        {"name": "least_squares", "as_published": True},
        {"time_budget_seconds": 60.0},
    ],
    ids=str,
)
def test_a_method_that_chooses_here_and_there_is_refused(method: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="needs a choice of one window: least_squares, cosine, drop, or refit") as no:
        rule("gemma2", method=method)
    assert no.value.field == "method.name"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({}, Method.LEAST_SQUARES),
        ({"name": "drop"}, Method.DROP),
        ({"name": "cosine"}, Method.COSINE),
        ({"name": "refit", "selection": "window"}, Method.REFIT),
    ],
)
def test_methods_that_choose_a_window(method: dict[str, object], expected: Method) -> None:
    assert rule("gemma2", method=method)[0].method.name is expected
