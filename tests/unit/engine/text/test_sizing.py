"""A request that leaves the number of samples open gets as many as its text has, at most the usual number."""

from pathlib import Path

import pytest

from replaceme_core.engine.text.tokens import calibration_tokens, sized_to_text
from replaceme_core.errors import CalibrationTooSmall, InvalidInput
from replaceme_core.hardware import WorkerKind
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.defaults import FEWEST_SAMPLES, GENERAL_SHARE, OWN_SHARE
from replaceme_core.request.resolve import Machine, ResolvedSpec, resolve_spec
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import RunnerRequest
from tests.fixtures.models.tiny import byte_tokenizer

LENGTH = 16
USUAL = 64
VOCABULARY = 260


def written(path: Path, *, sequences: int) -> Path:
    """A text of this number of sequences."""
    path.write_text("\n".join("a few words, and" for _ in range(sequences)))
    return path


def resolved(requested: CalibrationSpec, *, measured: bool = True) -> ResolvedSpec:
    usual = {"samples": requested.samples or USUAL, "max_length": LENGTH}
    body: dict[str, object] = {
        "model": {"repo_id": "org/tiny"},
        "ratio": 0.5,
        "calibration": requested.model_dump() | usual,
        "evaluation": {"enabled": measured},
        "method": {"name": "least_squares"},
        "compute": {"dtype": "float32", "batch_size": 4},
    }
    return resolve_spec(CompressionSpec.model_validate(body), Machine(kind=WorkerKind.CPU), values=1000)


def sized(requested: CalibrationSpec, *paths: Path | None, measured: bool = True) -> ResolvedSpec:
    spec = resolved(requested, measured=measured)
    request = RunnerRequest(
        spec=CompressionSpec(model=spec.model, ratio=spec.ratio, calibration=requested),
        model_directory="m",
        calibration_paths=tuple(None if path is None else str(path) for path in paths),
        output_directory="o",
    )
    return sized_to_text(spec, request, byte_tokenizer())


def one_text(**options: object) -> CalibrationSpec:
    return CalibrationSpec.model_validate({"dataset": "file:a.txt", "self_generated": 0, **options})


def test_a_long_text_gives_the_usual_number(tmp_path: Path) -> None:
    found = sized(one_text(), written(tmp_path / "a.txt", sequences=80))
    assert found.calibration.samples == USUAL


@pytest.mark.parametrize("sequences", [24, 40, 71])
def test_a_short_text_gives_as_many_as_leave_some_to_measure(tmp_path: Path, sequences: int) -> None:
    path = written(tmp_path / "a.txt", sequences=sequences)
    found = sized(one_text(), path)
    samples = found.calibration.samples
    assert 0.85 * sequences <= samples < sequences
    tokens = calibration_tokens(found, byte_tokenizer(), paths=[path], vocabulary=VOCABULARY)
    assert len(tokens.fit) + len(tokens.held_out) == samples
    assert len(tokens.measure) >= samples // 8
    without = sized(one_text(), path, measured=False)
    assert without.calibration.samples == samples, "an evaluation must not change what calibrates"


def test_a_named_number_is_kept(tmp_path: Path) -> None:
    found = sized(one_text(samples=40), written(tmp_path / "a.txt", sequences=24))
    assert found.calibration.samples == 40


def test_a_text_for_fewer_than_the_fewest_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", sequences=FEWEST_SAMPLES)
    found = sized(one_text(), path)
    assert found.calibration.samples == USUAL
    with pytest.raises(CalibrationTooSmall, match=r"64 x 16 = 1024 are needed .*or ask for at most 15 samples"):
        calibration_tokens(found, byte_tokenizer(), paths=[path], vocabulary=VOCABULARY)


def test_the_shares_of_a_mix_stay(tmp_path: Path) -> None:
    requested = CalibrationSpec.model_validate({"dataset": "file:a.txt"})
    found = sized(requested, written(tmp_path / "a.txt", sequences=40), None, None)
    calibration = found.calibration
    assert FEWEST_SAMPLES < calibration.samples < USUAL
    assert [source.share for source in calibration.mix] == [1 - OWN_SHARE - GENERAL_SHARE, OWN_SHARE, GENERAL_SHARE]


def test_the_shortest_of_several_texts_decides(tmp_path: Path) -> None:
    sources = [{"dataset": "file:a.txt", "share": 0.5}, {"dataset": "file:b.txt", "share": 0.5}]
    requested = CalibrationSpec.model_validate({"sources": sources})
    paths = [written(tmp_path / "a.txt", sequences=400), written(tmp_path / "b.txt", sequences=20)]
    assert 32 <= sized(requested, *paths).calibration.samples < 40


def test_each_of_several_short_texts_has_a_held_out_sequence_or_the_usual_number_is_wanted(tmp_path: Path) -> None:
    sources = [{"dataset": f"file:{name}.txt"} for name in "abc"]
    requested = CalibrationSpec.model_validate({"sources": sources})
    for sequences, samples in ((12, range(24, 36)), (8, range(USUAL, USUAL + 1))):
        paths = [written(tmp_path / f"{name}.txt", sequences=sequences) for name in "abc"]
        assert sized(requested, *paths).calibration.samples in samples


def test_a_text_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"other": 1}\n')
    with pytest.raises(InvalidInput):
        sized(CalibrationSpec.model_validate({"dataset": "file:a.jsonl"}), path)
