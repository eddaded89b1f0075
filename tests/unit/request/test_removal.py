"""How many blocks go: one number for a ratio, a range where the deepest cut is asked for."""

import pytest

from benchmarks.harness.specs import a_spec
from replaceme_core.errors import InvalidInput
from replaceme_core.families.table import FAMILIES
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.request.removal import blocks_to_remove, check_removal, depths_of, ratio_of

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
    assert check_removal(spec, OUTLINE) == depths[-1]


def test_groups_that_no_depth_has() -> None:
    spec = a_spec(ratio={"max": 0.1}, gate=GATE, method={"name": "cosine", "groups": 4})
    with pytest.raises(InvalidInput, match="in at most 3 groups"):
        depths_of(spec, OUTLINE)


@pytest.mark.parametrize("blocks", [2, 6, 30, 61, 126])
def test_every_depth_has_a_ratio(blocks: int) -> None:
    for depth in range(1, blocks):
        assert blocks_to_remove(ratio_of(depth, blocks), blocks) == depth
