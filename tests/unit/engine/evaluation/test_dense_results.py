"""A second evaluation of the same dense model reads its results, and comes to the same numbers."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from replaceme_core.engine.activations.cache import open_cache
from replaceme_core.engine.activations.verified_file import Contents
from replaceme_core.engine.evaluation.compare import Comparison, Original
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.measure import TIMED, Subject
from replaceme_core.engine.evaluation.tasks import LoadedTasks, load_tasks
from replaceme_core.engine.model.load import load_model
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.request.resolve import ResolvedCompute
from tests.fixtures.evaluation.local_tasks import CHOICE, OF_A_DATA_SET, write_tasks
from tests.fixtures.models.tiny import BLOCKS, byte_tokenizer, save_tiny, tiny_model, token_ids

pytestmark = pytest.mark.filterwarnings("default")  # what the library of tasks warns of is not ours
SEQUENCES, LENGTH = 8, 32
COMPUTE = ResolvedCompute.model_validate(
    {"device": "cpu", "dtype": "float32", "threads": 1, "batch_size": 8, "loading": "whole"}
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "source")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "data-sets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return write_tasks(tmp_path / "tasks")


@pytest.fixture(autouse=True)
def _one_sequence_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.engine.evaluation.measure.LOGITS_AT_ONCE", 1)
    monkeypatch.setattr("replaceme_core.engine.evaluation.compare.NEW_TOKENS", 4)
    monkeypatch.setattr("replaceme_core.engine.evaluation.speed.RUNS", 1)


def results_of(source: Path, *, limit: int = 2**30, **compute: object) -> DenseResults:
    cache = open_cache(str(source.parent / "cache"), limit=limit)
    return DenseResults.of(source, cache, COMPUTE.model_copy(update=compute))


def tokens() -> TokenSet:
    none = torch.zeros(0, LENGTH, dtype=torch.long)
    return TokenSet.of_one_source(fit=none, held_out=none, measure=token_ids(SEQUENCES, LENGTH, seed=1))


def counted(model: PreTrainedModel) -> list[int]:
    """One entry for each call of a block of the model."""
    calls: list[int] = []
    for number, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    return calls


def compared(
    source: Path, results: DenseResults, *, tasks: LoadedTasks | None = None, generates: bool = True
) -> tuple[Comparison, int]:
    """With another pruned model than the dense one, and how many times a block of the dense one ran."""
    pruned = tiny_model()
    with torch.no_grad():
        pruned.lm_head.weight.mul_(3.0)
    dense = load_model(source, dtype=torch.float32, device="cpu")
    calls = counted(dense)
    before = Subject(name="before", model=dense, directory=source, results=results)
    after = Subject(name="after", model=pruned, directory=source)
    original = Original(
        subject=before, tokens=tokens(), tokenizer=byte_tokenizer(), generates=generates, seed=0, tasks=tasks
    )
    found = original.finish(original.compare(after, advance=lambda _: None), after)
    return found, len(calls)


def without_speed(found: Comparison) -> dict[str, object]:
    values = dataclasses.asdict(dataclasses.replace(found, reused=()))
    for side in ("before", "after"):
        del values[side]["tokens_per_second"], values[side]["speed"]
    return values


def test_the_second_run_has_equal_numbers_and_runs_the_dense_model_for_speed_only(source: Path, tasks: Path) -> None:
    loaded = load_tasks([CHOICE, OF_A_DATA_SET], directory=str(tasks), limit=6)
    first, calls = compared(source, results_of(source), tasks=loaded)
    assert first.reused == []
    second, again = compared(source, results_of(source), tasks=loaded)
    assert second.reused == ["text", "self-generated", f"task {CHOICE}", f"task {OF_A_DATA_SET}", "answers"]
    assert without_speed(second) == without_speed(first)
    assert second.before.speed is not None
    assert second.before.tokens_per_second > 0
    plain, _ = compared(source, DenseResults(), tasks=loaded)
    assert without_speed(plain) == without_speed(first), "to the last bit, with and without what is kept"
    runs = again // BLOCKS
    texts = len(second.texts)
    spoken = second.before.speed
    measured = (1 + spoken.prefill.runs) * (1 + spoken.new_tokens)
    assert runs == texts * (1 + TIMED) + measured, "a warm-up and some batches of each text, and the runs for speed"
    assert again < calls


@pytest.mark.parametrize("harm", ["flip", "gone"])
def test_a_damaged_result_is_made_again(source: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = results_of(source)
    asked, made = {"question": 1}, list[int]()

    def make() -> Contents:
        made.append(1)
        return Contents(record={"value": 0.1 + 0.2}, tensors={"stream": torch.arange(300.0)})

    first = results.find_or_make("answers", asked, make)
    (entry,) = [path for path in (source.parent / "cache").iterdir() if path.is_dir()]
    (file,) = entry.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    if harm == "flip":
        data[-100] ^= 4
        file.write_bytes(data)
    else:
        file.unlink()
    for expected in (2, 2):
        again = results_of(source).find_or_make("answers", asked, make)
        assert len(made) == expected, "made again once, and then read"
        assert again.record == first.record
        assert torch.equal(again.tensors["stream"], first.tensors["stream"])


def test_what_decides_a_result_is_in_its_key(source: Path, tmp_path: Path) -> None:
    def make() -> Contents:
        return Contents(record={}, tensors={})

    results_of(source).find_or_make("answers", {"length": 1}, make)
    assert results_of(source).find("answers", {"length": 1}) is not None
    assert results_of(source).find("answers", {"length": 2}) is None
    assert results_of(source).find("text", {"length": 1}) is None
    for changed in ({"dtype": "bfloat16"}, {"threads": 2}, {"loading": "blockwise"}):
        assert results_of(source, **changed).find("answers", {"length": 1}) is None
    tokenizer = source / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert results_of(source).find("answers", {"length": 1}) is None
    save_tiny(source, seed=1)
    assert results_of(source).find("answers", {"length": 1}) is None


def test_other_data_of_a_task_are_another_result(source: Path, tasks: Path) -> None:
    model = load_model(source, dtype=torch.float32, device="cpu")

    def reused(limit: int | None = 6, few_shot: int | None = 0) -> list[str]:
        results = results_of(source)
        loaded = load_tasks([CHOICE], directory=str(tasks), limit=limit, few_shot=few_shot)
        assert loaded is not None
        loaded.run(model, byte_tokenizer(), results)
        return results.reused

    assert reused() == []
    assert reused() == [f"task {CHOICE}"]
    assert reused(limit=5) == []
    assert reused(few_shot=1) == []
    questions = tasks / "questions.jsonl"
    questions.write_text(questions.read_text().replace("plus one", "and one"))
    assert reused() == []
    assert reused() == [f"task {CHOICE}"]
    (tasks / "code.py").write_text("# a task may import this")
    assert reused() == []


def test_no_place_no_result(source: Path) -> None:
    for results in (DenseResults(), results_of(source, limit=100)):
        found, _ = compared(source, results, generates=False)
        assert found.reused == []
    assert [path for path in (source.parent / "cache").iterdir() if path.is_dir()] == []
    (source.parent / "cache").rmdir()
    (source.parent / "cache").write_text("a file")
    found, _ = compared(source, results_of(source), generates=False)
    assert found.before.perplexity > 1
