"""Both models beside each other on every text, what they answer, and results that a later run reads."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.activations.cache import open_cache
from replaceme_core.engine.activations.verified_file import Contents
from replaceme_core.engine.evaluation.compare import (
    NEW_TOKENS,
    QUESTIONS,
    Comparison,
    Original,
    answer,
    distinct_share,
    judge,
    repeats,
)
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.measure import TIMED, Divergence, Subject, measure
from replaceme_core.engine.evaluation.tasks import LoadedTasks, TaskPair, TaskResult, load_tasks
from replaceme_core.engine.model.lazy_model import open_for_capture
from replaceme_core.engine.model.load import load_model
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.errors import GateRejected, InvalidInput
from replaceme_core.request.defaults import MEASURED_ELSEWHERE
from replaceme_core.request.gate import GateSpec
from replaceme_core.request.resolve import ResolvedCompute
from replaceme_core.request.spec import Quantization
from tests.fixtures.evaluation.local_tasks import CHOICE, OF_A_DATA_SET, offline, write_tasks
from tests.fixtures.models.activations import of_one_source
from tests.fixtures.models.tiny import BLOCKS, byte_tokenizer, save_tiny, tiny_model, token_ids

pytestmark = pytest.mark.filterwarnings("default")  # what the library of tasks warns of is not ours
LENGTH, OF_FIRST = 32, 8
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
COMPUTE = ResolvedCompute.model_validate(
    {"device": "cpu", "dtype": "float32", "threads": 1, "batch_size": 8, "loading": "whole"}
)


@pytest.fixture(autouse=True)
def _one_sequence_in_a_batch(monkeypatch: pytest.MonkeyPatch, brief_reports: None) -> None:
    monkeypatch.setattr("replaceme_core.engine.evaluation.measure.LOGITS_AT_ONCE", 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "source")


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[Path]:
    with offline(tmp_path / "data-sets"):
        yield write_tasks(tmp_path / "tasks")


def results_of(source: Path, *, limit: int = 2**30, **compute: object) -> DenseResults:
    cache = open_cache(str(source.parent / "cache"), limit=limit)
    return DenseResults.of(source, cache, COMPUTE.model_copy(update=compute))


def tokens(*names: str) -> TokenSet:
    """`OF_FIRST` sequences of the first text, two of each other one."""
    of_others = [number for number in range(1, len(names)) for _ in range(2)]
    none = torch.zeros(0, LENGTH, dtype=torch.long)
    empty = of_one_source(fit=none, held_out=none, measure=none)
    return dataclasses.replace(
        empty,
        sources=names,
        measure=token_ids(OF_FIRST + len(of_others), LENGTH, seed=1),
        measure_sources=torch.tensor([0] * OF_FIRST + of_others),
    )


def compared(
    source: Path,
    *names: str,
    results: DenseResults | None = None,
    tasks: LoadedTasks | None = None,
    generates: bool = True,
) -> tuple[Comparison, int]:
    """With a pruned model of three times the logits, and how many times a block of the source model ran."""
    dense, pruned, runs, fractions = tiny_model(), tiny_model(), list[int](), list[float]()
    with torch.no_grad():
        pruned.lm_head.weight.mul_(3.0)
    for block in dense.model.layers:
        block.mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    original = Original(
        subject=Subject(name="before", model=dense, directory=source, results=results or DenseResults()),
        tokens=tokens(*names or ["file:a.txt"]),
        tokenizer=byte_tokenizer(),
        generates=generates,
        seed=0,
        tasks=tasks,
    )
    after = Subject(name="after", model=pruned, directory=source)
    found = original.finish(original.compare(after, advance=fractions.append), after)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    return found, len(runs)


def test_a_chat_model_is_asked_through_its_template() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    found = answer(tiny_model(), tokenizer, new_tokens=NEW_TOKENS)
    assert [one.prompt for one in found] == list(QUESTIONS)
    assert all("<|assistant|>" not in one.text for one in found)
    assert 0 < (distinct_share(found) or 0) <= 1
    assert distinct_share([]) is None


def test_a_model_whose_template_fails_is_asked_without_it() -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    wanted = answer(model, tokenizer, QUESTIONS, new_tokens=8)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert answer(model, tokenizer, QUESTIONS, new_tokens=8) == wanted


def test_a_prompt_and_its_answer_fit_into_the_table_of_positions() -> None:
    tokenizer, prompts = byte_tokenizer(), ["x" * 30]
    for longest in (34, None):
        assert len(answer(tiny_model(), tokenizer, prompts, new_tokens=4, longest=longest)) == 1
    with pytest.raises(
        InvalidInput, match="has 34 positions, and a prompt of 30 tokens with an answer of 5 is"
    ) as found:
        answer(tiny_model(), tokenizer, prompts, new_tokens=5, longest=34)
    assert found.value.field == "prompts"


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([1, 2, 3, 4] + [9, 8] * 6, True),
        ([7] * 11, False),  # three dots are not a loop
        ([*range(20), *range(20), *range(20)], False),  # a unit that is too long
        ([*range(5), *range(5), *range(5)], True),
        ([5] * 20 + list(range(30, 40)), False),  # it goes on after that
    ],
)
def test_an_end_that_repeats_itself_is_a_loop(tokens: list[int], loops: bool) -> None:
    assert repeats(tokens) is loops


def test_each_text_is_measured_apart(source: Path) -> None:
    found, _ = compared(source, "file:a.txt", "org/other")
    assert [(one.name, one.tokens) for one in found.texts] == [
        ("file:a.txt", OF_FIRST * 31),
        ("org/other", 2 * 31),
        ("builtin:general", MEASURED_ELSEWHERE * 31),
        ("self-generated", MEASURED_ELSEWHERE * 31),
    ]
    first = found.texts[0]
    assert (first.before, first.after) == (found.before.perplexity, found.after.perplexity)
    assert first.ratio == first.after / first.before
    other = Subject(name="before", model=tiny_model(), directory=source)
    (alone,) = measure([other], tokens("file:a.txt", "org/other").measure[OF_FIRST:])
    assert found.texts[1].before == pytest.approx(alone.perplexity)
    assert len(found.answers_before) == len(found.answers_after) == 5
    for text in found.texts:
        assert text.agreement == 1, "three times the logits: the same first choices, but surer of them"
        assert text.divergence > 0.01


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (["file:a.txt", "builtin:prose"], []),
        (["builtin:pydoc-topics"], ["builtin:general"]),
        (["file:a.txt"], ["builtin:general"]),
    ],
)
def test_which_texts_are_measured_where_nothing_is_generated(source: Path, names: list[str], more: list[str]) -> None:
    """A model that is read block by block generates nothing; built-in text of the calibration is not measured twice."""
    found, _ = compared(source, *names, generates=False)
    assert [one.name for one in found.texts] == [*names, *more]
    assert (found.answers_before, found.answers_after) == ((), ())


def test_predictions_that_differ_are_counted() -> None:
    with torch.inference_mode():
        logits = tiny_model()(input_ids=token_ids(2, LENGTH, seed=3)).logits.flatten(0, 1)
    apart = Divergence()
    apart.add(logits, logits.flip(0))
    wanted, found = logits.log_softmax(-1), logits.flip(0).log_softmax(-1)
    assert apart.mean_nats == pytest.approx(float((wanted.exp() * (wanted - found)).sum(-1).mean()), rel=1e-4)
    assert apart.agreement == pytest.approx(float((logits.argmax(-1) == logits.flip(0).argmax(-1)).float().mean()))


def without_speed(found: Comparison) -> dict[str, object]:
    values = dataclasses.asdict(dataclasses.replace(found, reused=()))
    for side in ("before", "after"):
        del values[side]["tokens_per_second"], values[side]["speed"]
    return values


def test_the_second_run_has_equal_numbers_and_runs_the_dense_model_for_speed_only(source: Path, tasks: Path) -> None:
    loaded = load_tasks([CHOICE, OF_A_DATA_SET], directory=str(tasks), limit=6)
    first, calls = compared(source, results=results_of(source), tasks=loaded)
    assert first.reused == []
    second, again = compared(source, results=results_of(source), tasks=loaded)
    assert second.reused == ["text", "self-generated", f"task {CHOICE}", f"task {OF_A_DATA_SET}", "answers"]
    plain, _ = compared(source, tasks=loaded)
    assert without_speed(second) == without_speed(plain) == without_speed(first), "to the last bit"
    spoken = second.before.speed
    assert spoken is not None
    measured = (1 + spoken.prefill.runs) * (1 + spoken.new_tokens)
    runs = len(second.texts) * (1 + TIMED) + measured
    assert again == runs * BLOCKS, "a warm-up and some batches of each text, and the runs for speed"
    assert again < calls


def test_a_damaged_result_is_made_again(source: Path) -> None:
    made: list[int] = []

    def make() -> Contents:
        made.append(1)
        return Contents(record={"value": 0.1 + 0.2}, tensors={"stream": torch.arange(300.0)})

    first = results_of(source).find_or_make("answers", {}, make)
    (file,) = (source.parent / "cache").glob("*/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)
    for _ in range(2):
        again = results_of(source).find_or_make("answers", {}, make)
        assert len(made) == 2, "made again once, and then read"
        assert again.record == first.record
        assert torch.equal(again.tensors["stream"], first.tensors["stream"])


def test_what_decides_a_result_is_in_its_key(source: Path) -> None:
    def found(name: str = "answers", *, length: int = 1, **compute: object) -> bool:
        return results_of(source, **compute).find(name, {"length": length}) is not None

    results_of(source).keep("answers", {"length": 1}, Contents(record={}, tensors={}))
    assert found()
    assert not found(length=2)
    assert not found("text")
    assert not any(found(**one) for one in ({"dtype": "bfloat16"}, {"threads": 2}, {"loading": "blockwise"}))  # type: ignore[arg-type]
    tokenizer = source / "tokenizer_config.json"
    before = tokenizer.read_text()
    tokenizer.write_text(before + " ")
    assert not found()
    tokenizer.write_text(before)
    assert found()
    save_tiny(source, seed=1)
    assert not found()


def test_text_of_a_quantized_model_is_not_that_of_the_same_one_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_tiny(tmp_path / "source", hidden_size=64, intermediate_size=128)
    monkeypatch.setattr(
        "replaceme_core.engine.evaluation.dense_results.generate_sequences", lambda *_, **__: torch.zeros(1, 8)
    )

    def reused(quantization: Quantization | None) -> bool:
        compute = COMPUTE.model_copy(update={"quantization": quantization})
        model, results = open_for_capture(source, dtype=torch.float32, compute=compute), results_of(source)
        results.own_text(model, byte_tokenizer(), 1, length=8, seed=0)
        return bool(results.reused)

    assert not any(reused(one) for one in (Quantization.FOUR_BITS, Quantization.EIGHT_BITS, None))
    assert all(reused(one) for one in (Quantization.FOUR_BITS, Quantization.EIGHT_BITS, None))


def test_other_data_of_a_task_are_another_result(source: Path, tasks: Path) -> None:
    model = load_model(source, dtype=torch.float32, device="cpu")

    def reused(limit: int | None = 6, few_shot: int | None = 0) -> bool:
        results = results_of(source)
        loaded = load_tasks([CHOICE], directory=str(tasks), limit=limit, few_shot=few_shot)
        assert loaded is not None
        loaded.run(model, byte_tokenizer(), results)
        return bool(results.reused)

    assert [reused(), reused(), reused(limit=5), reused(few_shot=1)] == [False, True, False, False]
    questions = tasks / "questions.jsonl"
    questions.write_text(questions.read_text().replace("plus one", "and one"))
    assert [reused(), reused()] == [False, True]
    (tasks / "code.py").write_text("# a task may import this")
    assert not reused()


def pair(name: str, before: float | None, after: float | None, *, samples: int) -> TaskPair:
    old, new = (
        TaskResult(name=name, samples=samples, few_shot=0, accuracy=one, chance=None, metrics={})
        for one in (before, after)
    )
    return TaskPair(before=old, after=new)


def test_a_gate_on_a_group_judges_its_tasks_by_their_questions(source: Path, tasks: Path) -> None:
    (tasks / "group.yaml").write_text(f"group: local_group\ntask: [{CHOICE}, {OF_A_DATA_SET}]\n")
    loaded = load_tasks(["local_group"], directory=str(tasks), limit=2)
    found, _ = compared(source, tasks=loaded, generates=False)
    assert [one.before.name for one in found.tasks] == [CHOICE, OF_A_DATA_SET]
    pairs = [pair(CHOICE, 0.5, 0.25, samples=30), pair(OF_A_DATA_SET, 0.5, 0.5, samples=10)]
    gate = GateSpec.model_validate({"tasks": {"local_group": {"min_kept": 0.625}}, "accuracy_kept": {"min": 0.75}})
    result = judge(gate, dataclasses.replace(found, tasks=pairs))
    assert {one.name: one.value for one in result.criteria} == {"tasks.local_group": 0.625, "accuracy_kept": 0.75}
    assert result.passed


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([pair("t", 0.0, 0.5, samples=4)], "the accuracy of the original model is 0"),
        ([pair("t", None, None, samples=4)], "no accuracy was measured"),
        ([], "no accuracy was measured"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_rejected_with_the_reason(
    source: Path, pairs: list[TaskPair], reason: str
) -> None:
    found, _ = compared(source, generates=False)
    gate = GateSpec.model_validate({"tasks": {"t": {"min_kept": 0.5}}})
    with pytest.raises(GateRejected, match=f"^the gate cannot be judged by tasks.t: {reason}$"):
        judge(gate, dataclasses.replace(found, tasks=pairs))


def test_no_place_no_result(source: Path) -> None:
    cache = source.parent / "cache"
    found, _ = compared(source, results=results_of(source, limit=100), generates=False)
    assert (found.reused, [path for path in cache.iterdir() if path.is_dir()]) == ([], [])
    cache.rmdir()
    cache.write_text("a file")
    found, _ = compared(source, results=results_of(source), generates=False)
    assert found.before.perplexity > 1
