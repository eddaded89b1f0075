"""A gate judges what was measured; what fails after a result was computed does not lose it, unless the gate asks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from replaceme_core.engine.evaluation import compare
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.tasks import load_tasks
from replaceme_core.engine.model.load import load_model
from replaceme_core.errors import BrokenModel, GateRejected, NumericalFailure
from replaceme_core.request.gate import GateResult
from replaceme_core.runner.messages import Finished, RunnerRequest
from tests.fixtures.evaluation.local_tasks import CHOICE, QUESTIONS, ROLLING, write_tasks
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, byte_tokenizer, save_tiny


def test_every_criterion_is_judged_by_what_was_measured(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", dtype=torch.bfloat16)
    gate = {
        "perplexity_ratio": {"min": 0.001, "max": 1000},
        "worst_perplexity_ratio": {"max": 1000},
        "divergence": {"max": 100},
        "agreement": {"max": 1},
        "size_ratio": {"max": 0.01},
    }
    finished, recorder, out = run(request(source, gate=gate))
    report = finished.report
    result = GateResult.in_report(report)
    assert result is not None
    assert not result.passed
    texts = report["texts"]
    assert isinstance(texts, list)
    first, sizes = texts[0], {side: report[side]["bytes"] for side in ("before", "after")}  # type: ignore[index]
    expected = {
        "perplexity_ratio": first["ratio"],
        "worst_perplexity_ratio": max(text["ratio"] for text in texts),
        "divergence": first["divergence"],
        "agreement": first["agreement"],
        "size_ratio": sizes["after"] / sizes["before"],
    }
    assert {one.name: one.value for one in result.criteria} == expected
    assert [one.name for one in result.missed] == ["size_ratio"]
    card = (out / "README.md").read_text()
    assert f"| **size_ratio** | {expected['size_ratio']:.6g} | at most 0.01 | ✗ missed |" in card
    assert (
        f"| perplexity_ratio | {expected['perplexity_ratio']:.6g} | at least 0.001 and at most 1000 | passed |" in card
    )
    assert recorder.values("gate_passed") == [1, 1, 1, 1, 0]
    assert recorder.values("gate_value") == list(expected.values())


@pytest.mark.filterwarnings("default")  # what lm_eval warns of is not ours
def test_tasks_are_run_on_both_models_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = save_tiny(tmp_path / "source", num_hidden_layers=6)
    tasks = str(write_tasks(tmp_path / "tasks"))
    gate = {"accuracy_kept": {"min": 0}, "tasks": {CHOICE: {"min_kept": 100}}}
    asked = {"evaluation": {"samples": 4, "tasks": [CHOICE, ROLLING]}, "gate": gate, "method": {"name": "drop"}}
    one = request(source, **asked).model_copy(update={"tasks_directory": tasks})
    finished, recorder, out = run(one)
    choice, rolling = finished.report["tasks"]  # type: ignore[misc]
    assert (choice["name"], choice["samples"], rolling["before"]["accuracy"]) == (CHOICE, QUESTIONS, None)
    before, after = choice["before"]["accuracy"], choice["after"]["accuracy"]
    assert choice["kept"] == after / before
    result = GateResult.in_report(finished.report)
    assert result is not None
    assert {one.name: (one.value, one.passed) for one in result.criteria} == {
        "accuracy_kept": (after / before, True),
        f"tasks.{CHOICE}": (after / before, False),
    }
    assert recorder.values("before.task_accuracy") == [before]
    card = (out / "README.md").read_text()
    assert f"| {CHOICE} | {100 * before:.1f} % (" in card
    assert "No benchmark" not in card
    measured = load_tasks([CHOICE], directory=tasks)
    assert measured is not None
    (alone,) = measured.run(load_model(out, dtype=torch.float32, device="cpu"), byte_tokenizer(), DenseResults())
    assert alone.accuracy == after


PLAIN_TURNS = "{% for turn in messages %}\n{{ turn['content'] }}\n{% endfor %}"
NO_TURNS = "{{ raise_exception('no turns') }}"
WORDS = "The th sentence tells of sheep and dogs What is the capital of France ? . 1 2 3 4 5 6 7 8 9 0"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "source", dtype=torch.bfloat16)


def without_newlines(directory: Path) -> None:
    """Put in a tokenizer of words, which has no token for white space, with a plain chat template."""
    known = {word: number for number, word in enumerate(dict.fromkeys(["<unk>", "<end>", *WORDS.split()]))}
    tokenizer = Tokenizer(models.WordLevel(vocab=known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    for old in directory.glob("tokenizer*"):
        old.unlink()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    made.chat_template = PLAIN_TURNS
    made.save_pretrained(directory)


def warnings_of(finished: Finished) -> list[tuple[str, str]]:
    return [(one["code"], one["message"]) for one in finished.report["warnings"]]  # type: ignore[attr-defined]


def texts_of(finished: Finished) -> list[str]:
    return [one["name"] for one in finished.report["texts"]]  # type: ignore[attr-defined]


def test_a_tokenizer_that_drops_newlines(source: Path) -> None:
    """Its chat template gives no tokens around a message, and the start of a document none without an end token."""
    without_newlines(source)
    calibration = {"dataset": "file:text.txt", "samples": 16, "max_length": 32, "self_generated": 0.25}
    finished, _, _ = run(request(source, calibration=calibration))
    assert "not_measured" not in dict(warnings_of(finished))
    assert texts_of(finished)[-1] == "self-generated"
    assert len(finished.report["answers"]) == 5  # type: ignore[arg-type]


def test_answers_longer_than_the_table_of_positions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "NEW_TOKENS", 48)
    source = save_tiny(tmp_path / "source", variant=BY_NAME["gpt2"], max_position_embeddings=40)
    finished, _, _ = run(request(source))
    assert finished.report["answers"] == []
    assert "could not be measured: the model has 40 positions" in dict(warnings_of(finished))["not_measured"]


def test_a_chat_template_that_cannot_be_rendered(source: Path) -> None:
    """Only what needs it is missing; and a criterion on all texts needs it."""
    (source / "chat_template.jinja").write_text(NO_TURNS)
    gate = {"perplexity_ratio": {"max": 100}}
    finished, recorder, out = run(request(source, gate=gate))
    codes, messages = zip(*warnings_of(finished), strict=True)
    assert set(codes) == {"not_measured"}
    for message, what in zip(messages, ("builtin:general", "self-generated"), strict=True):
        assert message.startswith(
            f"the perplexity on {what} text could not be measured: the chat template cannot be rendered"
        )
    assert texts_of(finished) == ["file:text.txt"]
    assert len(finished.report["answers"]) == 5, "both models are asked without it"  # type: ignore[arg-type]
    assert finished.report["gate"]["passed"]  # type: ignore[index]
    assert finished.report["after"]["speed"] is not None  # type: ignore[index]
    assert "self-generated text could not be measured" in (out / "README.md").read_text()
    assert recorder.values("after.perplexity")
    with pytest.raises(BrokenModel, match="chat template"):
        run(at(source, "other", gate={"worst_perplexity_ratio": {"max": 100}}))
    assert not (source.parent / "other").exists()


def test_logits_that_overflow_where_they_are_measured(source: Path) -> None:
    """In float16 the logits overflow, while the stream that the blocks read and write does not."""
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] *= 1e5
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    options = {"drop": [2], "method": {"name": "drop"}, "compute": {"threads": 1, "dtype": "float16"}}
    finished, _, out = run(request(source, **options))
    ((code, message),) = warnings_of(finished)
    assert code == "not_measured"
    assert "perplexity of the source model is not a number in float16" in message
    assert (finished.report["before"], finished.report["texts"]) == (None, [])
    assert len(load_file(out / "model.safetensors")) < len(weights)
    assert "Its quality was not measured." in (out / "README.md").read_text()
    with pytest.raises(NumericalFailure, match="perplexity of the source model is not a number in float16"):
        run(at(source, "other", gate={"size_ratio": {"max": 0.99}}, **options))
    calibration = {"dataset": "file:text.txt", "samples": 16, "max_length": 32, "self_generated": 0.25}
    with pytest.raises(NumericalFailure, match=r"the source model cannot write text in float16: .*self_generated: 0"):
        run(at(source, "other", calibration=calibration, **options))
    assert not (source.parent / "other").exists()


def test_a_mistake_of_ours_is_in_the_log_and_no_result_is_lost(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise IndexError(f"list index out of range in {source}")

    monkeypatch.setattr(compare, "measure_speed", fails)
    finished, _, _ = run(request(source, gate={"size_ratio": {"max": 0.99}}))
    assert dict(warnings_of(finished))["not_measured"] == (
        "the speed could not be measured: a mistake of the service (IndexError); the worker's log says more"
    )
    assert "list index out of range" in caplog.text
    assert finished.report["before"]["speed"] is None  # type: ignore[index]
    assert finished.report["before"]["blocks"] == BLOCKS  # type: ignore[index]
    monkeypatch.setattr(compare, "measure", fails)
    finished, _, _ = run(at(source, "second"))
    assert dict(warnings_of(finished))["not_measured"].startswith("the result could not be measured: a mistake")
    with pytest.raises(GateRejected, match="the gate cannot be judged: the result could not be measured: a mistake"):
        run(at(source, "third", gate={"size_ratio": {"max": 0.99}}))


def at(source: Path, name: str, **fields: object) -> RunnerRequest:
    return request(source, **fields).model_copy(update={"output_directory": str(source.parent / name)})
