"""What may be removed: how many blocks, and what keeps the pattern of a model's kinds of blocks."""

import pytest

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import InvalidInput
from replaceme_core.families.layout import FAMILIES
from replaceme_core.hub.model_config import ModelOutline, admit_config
from replaceme_core.request.removal import Allows, blocks_to_remove, check_removal, depths_of, keep_pattern, ratio_of
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
    ids=str,
)
def test_depths(fields: dict[str, object], depths: list[int]) -> None:
    assert depths_of(a_spec(**fields), OUTLINE) == depths


def test_groups_that_no_depth_has() -> None:
    spec = a_spec(ratio={"max": 0.1}, gate=GATE, method={"name": "cosine", "groups": 4})
    with pytest.raises(InvalidInput, match="in at most 3 groups"):
        depths_of(spec, OUTLINE)


@pytest.mark.parametrize(("name", "longest"), [("gpt2", 256), ("opt", 256), ("llama", None)])
def test_sequences_that_are_longer_than_a_table_of_positions(name: str, longest: int | None) -> None:
    """The field with its length has another name in each of the two."""
    outline = admit_config(tiny_config(BY_NAME[name]).to_dict())
    assert outline.longest == longest
    for length in (None, 256):
        check_removal(a_spec(calibration={"dataset": "org/data", "max_length": length}), outline)
    long = a_spec(calibration={"dataset": "org/data", "max_length": 257})
    if longest is None:
        check_removal(long, outline)
        return
    with pytest.raises(InvalidInput, match="has 256 positions, and sequences of 257 tokens") as refused:
        check_removal(long, outline)
    assert refused.value.field == "calibration.max_length"


@pytest.mark.parametrize("blocks", [2, 6, 30, 61, 126])
def test_every_depth_has_a_ratio(blocks: int) -> None:
    for depth in range(1, blocks):
        assert blocks_to_remove(ratio_of(depth, blocks), blocks) == depth


def kept(name: str, **fields: object) -> tuple[CompressionSpec, Allows]:
    variant, more = BY_NAME[name], {"compute": {"pattern_safe": True}, **fields}
    return keep_pattern(a_spec(**more), tiny_config(variant), FAMILIES[variant.model_type])


@pytest.mark.parametrize(
    ("name", "fields", "method"),
    [
        ("gemma2", {}, "least_squares"),
        ("gemma2", {"method": {"name": "drop"}}, "drop"),
        ("gemma2", {"method": {"name": "refit", "selection": "window"}}, "refit"),
        ("gemma2", {"drop": [2, 3]}, None),
        # nothing to keep: it is not asked for, or there is no pattern
        ("gemma2", {"compute": {}}, None),
        ("llama", {"method": {"name": "refit"}}, "refit"),
    ],
    ids=str,
)
def test_a_pattern_is_kept_where_it_is_asked_for_and_there_is_one(
    name: str, fields: dict[str, object], method: str | None
) -> None:
    spec, allows = kept(name, **fields)
    assert spec.method.name == method
    if name == "llama" or "compute" in fields:
        assert allows([2])
        return
    assert (allows([2, 3]), allows([2])) == (True, False)


WINDOW = "needs a choice of one window: least_squares, cosine, drop, or refit"


@pytest.mark.parametrize(
    ("name", "fields", "field", "words"),
    [
        ("gemma2", {"drop": [2]}, "drop", "without blocks 2 the kinds of the others"),
        ("smollm3-sliding", {}, "compute.pattern_safe", r"\(no_rope_layers, layer_types\) follow no step"),
        *(
            ("gemma2", {"method": method}, "method.name", WINDOW)
            for method in (
                {"name": "auto"},
                {"name": "refit"},
                {"name": "least_squares", "groups": 2},
                {"name": "least_squares", "as_published": True},
                {"time_budget_seconds": 60.0},
            )
        ),
    ],
    ids=str,
)
def test_what_cannot_keep_a_pattern_is_refused(name: str, fields: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        kept(name, **fields)
    assert refused.value.field == field
