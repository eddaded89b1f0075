"""A second job on the same model and data runs no block of the dense model, and gives the same bytes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.evaluation.evaluate import evaluate
from replaceme_core.runner.messages import EvaluateRequest, Finished, RunnerRequest
from tests.fixtures.models.pipeline import TEXT, request, run
from tests.fixtures.models.tiny import BLOCKS, save_tiny, save_trained

DENSE_RUNS = BLOCKS * (2 + 2 + 1)  # batches of 8: 14 fit sequences in two, 2 held-out ones in two, and the proof


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "source", dtype=torch.bfloat16)


def cached(source: Path, out: str, **fields: object) -> RunnerRequest:
    update = {"output_directory": str(source.parent / out), "cache_directory": str(source.parent / "cache")}
    return request(source, **{"evaluation": {"enabled": False}, **fields}).model_copy(update=update)


def entries(source: Path) -> list[Path]:
    return [path for path in (source.parent / "cache").iterdir() if path.name != "lock"]


def activations(finished: Finished) -> dict[str, object]:
    record = finished.report["captured"]
    assert isinstance(record, dict)
    return record


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def test_another_ratio_runs_no_dense_block(source: Path) -> None:
    first, recorder, _ = run(cached(source, "first"))
    assert activations(first)["dense_block_runs"] == DENSE_RUNS
    assert activations(first)["cached"] is False
    second, again, out = run(cached(source, "second", ratio=0.5))
    assert activations(second)["dense_block_runs"] == 0
    assert activations(second)["cached"] is True
    assert again.value("dense_block_runs") == 0
    assert again.value("residual_check_error") == recorder.value("residual_check_error")
    assert len(second.removed_blocks) == 3
    plain, uncached, other = run(cached(source, "plain", ratio=0.5).model_copy(update={"cache_directory": None}))
    assert activations(plain)["dense_block_runs"] >= DENSE_RUNS
    assert weights(out) == weights(other)
    assert second.report["candidates"] == plain.report["candidates"]
    assert again.value("dense_held_out_loss") == uncached.value("dense_held_out_loss")
    assert len(entries(source)) == 1


def test_own_text_of_an_earlier_job_calibrates_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = {"dataset": "file:text.txt", "samples": 16, "max_length": 32, "self_generated": 0.5}
    outs = [run(cached(source, "first", calibration=calibration))[2]]
    again = "replaceme_core.engine.evaluation.dense_results.generate_sequences"
    monkeypatch.setattr(again, lambda *_, **__: pytest.fail("text was generated again"))
    outs.append(run(cached(source, "second", calibration=calibration))[2])
    assert weights(outs[0]) == weights(outs[1])
    with pytest.raises(pytest.fail.Exception):
        run(cached(source, "third", calibration={**calibration, "seed": 1}))


def test_other_data_or_rounding_or_weights_are_another_entry(source: Path) -> None:
    others: list[dict[str, object]] = [
        {},
        {"calibration": {"dataset": "file:text.txt", "samples": 16, "max_length": 32, "seed": 1}},
        {"compute": {"threads": 1, "dtype": "bfloat16"}},
        {"compute": {"threads": 1, "dtype": "float32", "batch_size": 4}},
    ]
    for number, fields in enumerate(others):
        finished, *_ = run(cached(source, f"out-{number}", **fields))
        assert activations(finished)["cached"] is False
        assert len(entries(source)) == 1 + number
    save_tiny(source, dtype=torch.bfloat16, seed=1)  # other weights under the same name
    finished, *_ = run(cached(source, "last"))
    assert activations(finished)["cached"] is False


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("harm", ["flip", "index"])
def test_a_damaged_entry_is_made_anew(source: Path, harm: str) -> None:
    _, _, out = run(cached(source, "first"))
    (entry,) = entries(source)
    if harm == "index":
        path = entry / "entry.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "index": {"stream-0": [{}]}}))
    else:
        flip(entry / "write-1")
    second, _, other = run(cached(source, "second"))
    assert int(str(activations(second)["dense_block_runs"])) >= DENSE_RUNS - BLOCKS
    assert weights(out) == weights(other)
    third, *_ = run(cached(source, "third"))
    assert activations(third)["dense_block_runs"] == 0


def test_damage_found_while_weights_are_changed_on_trial_leads_to_the_same_bytes(tmp_path: Path) -> None:
    """`stream-4` is read once block 1 is changed on trial."""
    source, refit = save_trained(tmp_path / "source", TEXT, steps=30), {"method": {"name": "refit"}, "drop": [2]}
    _, _, out = run(cached(source, "first", **refit))
    (entry,) = entries(source)
    flip(entry / "stream-4")
    later = [run(cached(source, name, **refit))[2] for name in ("second", "third")]
    assert [weights(other) == weights(out) for other in later] == [True, True]


def test_streams_are_not_those_of_blocks_that_are_merged_on_trial(source: Path) -> None:
    run(cached(source, "merged", method={"name": "merge"}, drop=[2]))
    second, _, out = run(cached(source, "second"))
    assert activations(second)["cached"] is True
    _, _, other = run(cached(source, "plain").model_copy(update={"cache_directory": None}))
    assert weights(out) == weights(other)


def test_a_failed_run_leaves_no_draft(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr("replaceme_core.engine.model.block_runner.BlockRunner.run_with_last_write", fail)
    with pytest.raises(RuntimeError, match="no more"):
        run(cached(source, "first"))
    assert entries(source) == []


def test_where_nothing_can_be_kept_the_job_goes_on(source: Path) -> None:
    finished, *_ = run(cached(source, "first").model_copy(update={"cache_bytes": 1000}))
    assert activations(finished)["dense_block_runs"] == DENSE_RUNS
    assert entries(source) == []
    shutil.rmtree(source.parent / "cache")
    (source.parent / "cache").write_text("a file")
    finished, *_ = run(cached(source, "second"))
    assert activations(finished)["cached"] is False


def test_another_ratio_measures_the_pruned_model_alone(source: Path) -> None:
    """What the evaluation found of the dense one is read; the command `evaluate` uses the same directory."""
    evaluation = {"samples": 4}
    first, *_ = run(cached(source, "first", evaluation=evaluation))
    second, *_ = run(cached(source, "second", evaluation=evaluation, ratio=0.5))
    assert first.report["reused"] == []
    assert second.report["reused"] == ["text", "self-generated", "answers"]
    measured = [one.report["before"] for one in (first, second)]
    assert all(isinstance(one, dict) for one in measured)
    assert len({(one["perplexity"], one["byte_perplexity"]) for one in measured}) == 1  # type: ignore[call-overload, index]
    place = {"cache_directory": str(source.parent / "cache"), "builtin": "builtin:code", "samples": 4, "max_length": 32}
    asked = EvaluateRequest.model_validate({"model_directory": str(source), "threads": 1, **place})
    rows = [evaluate(asked)["models"][0] for _ in range(2)]  # type: ignore[index]
    assert [row["reused"] for row in rows] == [[], ["text"]]
    assert rows[0]["perplexity"] == rows[1]["perplexity"]
