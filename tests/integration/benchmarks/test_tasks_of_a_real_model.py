"""Tasks on SmolLM2 itself, offline: the numbers of the lm-evaluation-harness to the last digit."""

from pathlib import Path

import pytest
import torch

from benchmarks import smollm2
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.tasks import load_tasks
from replaceme_core.engine.model.load import load_model, load_tokenizer
from tests.fixtures.evaluation.local_tasks import CHOICE, QUESTIONS, ROLLING, offline, require_same_numbers, write_tasks

pytestmark = pytest.mark.filterwarnings("default")  # what the library warns of is not ours


def test_choices_and_rolling_perplexity_are_those_of_the_librarys_own_command(tmp_path: Path) -> None:
    directory, tasks = smollm2.provide(tmp_path / "model"), write_tasks(tmp_path / "tasks")
    with offline(tmp_path / "cache"):
        loaded = load_tasks([CHOICE, ROLLING], directory=str(tasks), limit=None, few_shot=None)
        assert loaded is not None
        model = load_model(directory, dtype=torch.float32, device="cpu")
        choice, rolling = ours = loaded.run(model, load_tokenizer(directory), DenseResults())
        require_same_numbers(ours, model=directory, tasks=tasks)
    assert choice.samples == QUESTIONS
    assert 1 < rolling.metrics["byte_perplexity"].value < 4, "a model that was trained"
