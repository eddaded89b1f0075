"""Tasks: our numbers are those of the library's own command, offline; shares that are kept; refusals."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.measure import share_interval
from replaceme_core.engine.evaluation.tasks import TaskResult, load_tasks
from replaceme_core.engine.model.load import load_model
from replaceme_core.errors import InvalidInput
from tests.fixtures.evaluation.local_tasks import (
    CHOICE,
    CHOICES,
    OF_A_DATA_SET,
    QUESTIONS,
    ROLLING,
    offline,
    require_same_numbers,
    write_tasks,
)
from tests.fixtures.models.tiny import byte_tokenizer, save_tiny, tiny_model

pytestmark = pytest.mark.filterwarnings("default")  # what the library warns of is not ours


@pytest.fixture(autouse=True)
def without_network(tmp_path: Path) -> Iterator[None]:
    with offline(tmp_path / "cache"):
        yield


def run_tasks(
    model: PreTrainedModel, names: list[str], directory: Path, *, limit: int | None = None, few_shot: int | None = None
) -> list[TaskResult]:
    loaded = load_tasks(names, directory=str(directory), limit=limit, few_shot=few_shot)
    assert loaded is not None
    return loaded.run(model, byte_tokenizer(), DenseResults())


def test_the_numbers_are_those_of_the_librarys_own_command(tmp_path: Path) -> None:
    """To the last digit: questions with choices, and perplexity over all tokens of a text."""
    directory, tasks = save_tiny(tmp_path / "model"), write_tasks(tmp_path / "tasks")
    ours = run_tasks(load_model(directory, dtype=torch.float32, device="cpu"), [CHOICE, ROLLING], tasks)
    require_same_numbers(ours, model=directory, tasks=tasks)
    choice, rolling = ours
    assert (choice.samples, choice.few_shot, choice.chance) == (QUESTIONS, 0, pytest.approx(1 / CHOICES))
    assert choice.accuracy == choice.metrics["acc"].value
    assert choice.accuracy is not None
    assert choice.interval == share_interval(choice.accuracy, QUESTIONS)
    assert (rolling.interval, rolling.accuracy, rolling.chance) == (None, None, None)


def test_what_a_task_with_a_count_of_its_own_gives_for_guessing_is_not_known(tmp_path: Path) -> None:
    """Such as truthfulqa_mc2, whose accuracy is the share of all right answers together."""
    tasks = write_tasks(tmp_path / "tasks")
    (tasks / "own.py").write_text("def count(doc, results):\n    return {'acc': 0.75}\n")
    own = (tasks / "choice.yaml").read_text().replace(CHOICE, "own") + "process_results: !function own.count\n"
    (tasks / "own.yaml").write_text(own)
    (found,) = run_tasks(tiny_model(), ["own"], tasks, limit=2)
    assert (found.accuracy, found.chance) == (0.75, None)


def test_long_texts_are_read_fewer_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one by one; the logits of all positions are in memory."""
    model, tasks = tiny_model(), write_tasks(tmp_path / "tasks")
    vocabulary, sizes = model.config.vocab_size, list[tuple[int, int]]()
    model.register_forward_hook(lambda *arguments: sizes.append(arguments[2].logits.shape[:2]))
    usual = run_tasks(model, [CHOICE, ROLLING], tasks)
    assert max(batch for batch, _ in sizes) == 8
    for tokens in (100, 1):
        monkeypatch.setattr("replaceme_core.request.defaults.LOGITS_AT_ONCE", tokens * vocabulary // 8)
        sizes.clear()
        found = run_tasks(model, [CHOICE, ROLLING], tasks)
        assert all(batch == 1 or batch * length <= tokens for batch, length in sizes)
        assert (max(batch for batch, _ in sizes) > 1) is (tokens > 1)
        for one, same in zip(usual, found, strict=True):
            assert {name: score.value for name, score in one.metrics.items()} == pytest.approx(
                {name: score.value for name, score in same.metrics.items()}, rel=1e-5
            )


def test_limits_examples_and_copies_of_data_sets(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    copied, plain = (
        run_tasks(tiny_model(max_position_embeddings=512), [name], tasks, limit=5)[0]
        for name in (OF_A_DATA_SET, CHOICE)
    )
    assert (copied.samples, copied.metrics) == (5, plain.metrics)
    none = (tasks / "choice.yaml").read_text().replace(CHOICE, "none") + "num_fewshot: 0\n"
    (tasks / "none.yaml").write_text(none)
    found = run_tasks(tiny_model(), [CHOICE, "none"], tasks, limit=5, few_shot=2)
    assert [one.few_shot for one in found] == [2, 0], "as the library's own command does it"


def test_more_examples_than_a_task_has_are_no_fault_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="it may have fewer examples than few_shot asks for") as raised:
        run_tasks(tiny_model(), [CHOICE], write_tasks(tmp_path / "tasks"), few_shot=QUESTIONS + 1)
    assert (raised.value.code, raised.value.field) == ("invalid_input", "evaluation.tasks")


def test_each_model_gets_the_same_examples(tmp_path: Path) -> None:
    """The library draws them anew for each run."""
    loaded = load_tasks([CHOICE], directory=str(write_tasks(tmp_path / "tasks")), limit=3, few_shot=2)
    assert loaded is not None
    read: list[list[str]] = []
    for _ in range(2):
        model, prompts = tiny_model(max_position_embeddings=512), list[str]()
        model.register_forward_pre_hook(lambda _, given, prompts=prompts: prompts.append(str(given[0].tolist())))
        loaded.run(model, byte_tokenizer(), DenseResults())
        read.append(prompts)
    assert read[0]
    assert read[0] == read[1]


def test_data_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    (tasks / "questions.jsonl").write_text("no JSON")
    with pytest.raises(InvalidInput, match="the task local_choice cannot be loaded: ") as raised:
        run_tasks(tiny_model(), [CHOICE], tasks)
    assert (raised.value.field, raised.value.value) == ("evaluation.tasks", CHOICE)


def result(accuracy: float | None, chance: float | None = 0.5) -> TaskResult:
    return TaskResult(name="t", samples=9, few_shot=0, accuracy=accuracy, chance=chance, metrics={})


@pytest.mark.parametrize(("accuracy", "low", "high"), [(0.0, 0.0, 0.390), (1.0, 0.610, 1.0)])
def test_none_or_all_right_of_six_is_not_certain(accuracy: float, low: float, high: float) -> None:
    """The library gives a standard error of 0, and of a single question none."""
    found = {"acc,none": accuracy, "acc_stderr,none": 0.0}
    six = TaskResult.of("t", found, samples=6, few_shot=0, chance=None)
    assert six.interval == pytest.approx((low, high), abs=5e-4)
    one = TaskResult.of("t", {**found, "acc_stderr,none": "N/A"}, samples=1, few_shot=0, chance=None)
    assert one.interval is not None
    assert one.interval[1] - one.interval[0] > 0.7
    kept = {**six.as_dict(), "low": accuracy, "high": accuracy}  # as an earlier version has kept it
    assert TypeAdapter(TaskResult).validate_python(kept) == six
    percent = TaskResult.of("t", {"exact_match,none": 50.0}, samples=6, few_shot=0, chance=None)
    assert percent.interval is None


def test_the_accuracy_of_a_task_with_filters_alone_is_that_of_the_strict_one() -> None:
    """As GSM8K has them; of filters of other names, the first."""
    strict = {"exact_match,flexible-extract": 0.5, "exact_match,strict-match": 0.25}
    first = {"exact_match,get-answer": 0.75, "exact_match,other": 0.5}
    found = [TaskResult.of("t", one, samples=8, few_shot=0, chance=None).accuracy for one in (strict, first)]
    assert found == [0.25, 0.75]


def test_the_share_that_is_kept() -> None:
    assert result(0.6).kept_of(result(0.8)) == {"kept": pytest.approx(0.75), "kept_above_chance": pytest.approx(1 / 3)}
    assert result(0.4).kept_of(result(0.8))["kept_above_chance"] == pytest.approx(-1 / 3)
    nothing = {"kept": None, "kept_above_chance": None}
    assert result(None).kept_of(result(None)) == nothing
    assert result(0.1, None).kept_of(result(0.2, None)) == {"kept": 0.5, "kept_above_chance": None}
    assert result(0.4).kept_of(result(0.5))["kept_above_chance"] is None, "the first is no better than chance"
