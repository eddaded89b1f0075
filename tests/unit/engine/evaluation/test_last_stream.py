"""The source model of several results: the same numbers as when it runs for each, from one pass."""

from pathlib import Path

import pytest
import torch

from replaceme_core.engine.activations.cache import ActivationCache
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.measure import TIMED, Divergence, Subject, measure
from replaceme_core.families.resolve import resolve
from tests.fixtures.models.tiny import VARIANTS, Variant, save_tiny, tiny_model, token_ids

SEQUENCES, LENGTH = 5, 16


@pytest.mark.parametrize("limit", [None, 100, 2**30], ids=["no cache", "a cache that is too small", "a cache"])
@pytest.mark.parametrize(
    "variant", [one for one in VARIANTS if one.name in ("llama", "gemma2", "granite", "gpt2", "falcon")], ids=str
)
def test_it_runs_once_and_its_numbers_stay_the_same(
    variant: Variant, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, sequences = save_tiny(tmp_path / "model", variant=variant), token_ids(SEQUENCES, LENGTH)
    model, pruned = tiny_model(variant), tiny_model(variant, seed=1)
    monkeypatch.setattr("replaceme_core.engine.evaluation.measure.LOGITS_AT_ONCE", 1)
    passes: list[int] = []
    resolve(model).blocks[0].register_forward_hook(lambda *_: passes.append(1))

    def measured(results: DenseResults, speeds: list[float]) -> tuple[list[float], Divergence]:
        before = Subject(name="the source model", model=model, directory=directory, results=results, speeds=speeds)
        after, apart = Subject(name="pruned", model=pruned, directory=directory), Divergence()
        measure([before, after], sequences, divergence=apart)
        return before.losses, apart

    caches = [] if limit is None else [ActivationCache(tmp_path / "cache", limit=limit)]
    with DenseResults(caches=caches).for_several(beside=tmp_path / "out") as results:
        speeds: list[float] = []
        found = [measured(results, speeds) for _ in range(3)]
        assert len(passes) == 1 + SEQUENCES, "a warm-up, and each batch once"
        assert len(speeds) == SEQUENCES
        assert results.reused == [], "what this run has found is not of an earlier one"
        measured(results, [])
        assert len(passes) == 1 + SEQUENCES + 1 + TIMED, "as many as its speed needs"
    assert found[0] == found[1] == found[2]
    assert found[0] == measured(DenseResults(), [])
    assert torch.isfinite(torch.tensor(found[0][0])).all()
    assert not list(tmp_path.glob(".out*")), "nothing is left beside the output"
    later = DenseResults(caches=caches)
    assert measured(later, []) == found[0]
    assert later.reused == (["text"] if limit == 2**30 else [])
