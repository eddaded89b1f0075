"""The source model of several results: the same numbers as when it runs for each, from one pass."""

from pathlib import Path

import pytest
import torch

from replaceme_core.activations.spill_to_disk import SpillingStore
from replaceme_core.evaluation.measure import Divergence, Subject, measure
from replaceme_core.evaluation.measured_once import MeasuredOnce
from tests.fixtures.models.tiny import VARIANTS, Variant, save_tiny, tiny_model, token_ids


@pytest.mark.parametrize("limit", [0, 2**30], ids=["on disk", "in memory"])
@pytest.mark.parametrize(
    "variant", [one for one in VARIANTS if one.name in ("llama", "gemma2", "granite", "gpt2", "falcon")], ids=str
)
def test_it_runs_once_and_its_numbers_stay_the_same(
    variant: Variant, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, sequences = save_tiny(tmp_path / "model", variant=variant), token_ids(3, 16)
    model, pruned = tiny_model(variant), tiny_model(variant, seed=1)
    monkeypatch.setattr("replaceme_core.evaluation.measure.LOGITS_AT_ONCE", 2 * 16 * 260)
    passes: list[int] = []
    with SpillingStore(beside=tmp_path / "out", limit=limit) as store:
        once = MeasuredOnce(name="the source model", model=model, directory=directory, store=store, key="first")
        blocks = once._runner.blocks
        blocks[0].register_forward_hook(lambda *_: passes.append(1))
        found = []
        for _ in range(3):
            once.rewind()
            after, apart = Subject(name="pruned", model=pruned, directory=directory), Divergence()
            before, _after = measure([once, after], sequences, divergence=apart)
            found.append((before, once.losses, apart))
        assert len(passes) == 1 + 2, "a warm-up, and two batches"
    assert found[0] == found[1] == found[2]
    alone, apart = Subject(name="the source model", model=model, directory=directory), Divergence()
    after = Subject(name="pruned", model=pruned, directory=directory)
    measure([alone, after], sequences, divergence=apart)
    assert (alone.losses, apart) == (found[0][1], found[0][2])
    assert torch.isfinite(torch.tensor(alone.losses)).all()
