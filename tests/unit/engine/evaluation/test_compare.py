"""Answers to a few prompts, and whether they repeat themselves."""

from pathlib import Path

import pytest
import torch

from replaceme_core.engine.evaluation.compare import (
    OPENINGS,
    QUESTIONS,
    Comparison,
    Original,
    answer,
    distinct_share,
    pair,
    prompts_for,
    repeats,
)
from replaceme_core.engine.evaluation.measure import Divergence, Subject, measure
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.request.defaults import MEASURED_ELSEWHERE
from tests.fixtures.models.tiny import byte_tokenizer, save_tiny, tiny_model, token_ids

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


def test_a_chat_model_is_asked_through_its_template() -> None:
    tokenizer = byte_tokenizer()
    assert prompts_for(tokenizer) == OPENINGS
    tokenizer.chat_template = TEMPLATE
    found = answer(tiny_model(), tokenizer)
    assert [one.prompt for one in found] == list(QUESTIONS)
    assert all("<|assistant|>" not in one.text for one in found)
    assert 0 < (distinct_share(found) or 0) <= 1
    assert distinct_share([]) is None


def test_the_same_model_gives_the_same_answers() -> None:
    before, after = (answer(tiny_model(), byte_tokenizer()) for _ in range(2))
    assert all(one.before == one.after and one.before_loops == one.after_loops for one in pair(before, after))


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


LENGTH = 32


@pytest.fixture(autouse=True)
def _short_answers_and_few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.engine.evaluation.compare.NEW_TOKENS", 8)
    monkeypatch.setattr("replaceme_core.engine.evaluation.speed.RUNS", 1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_tiny(path)
    return path


def tokens(*names: str) -> TokenSet:
    measure = token_ids(4 + 2 * (len(names) - 1), LENGTH, seed=1)
    sources = torch.tensor([0] * 4 + [number for number in range(1, len(names)) for _ in range(2)])
    none = torch.zeros(0, LENGTH, dtype=torch.long)
    return TokenSet(
        fit=none,
        held_out=none,
        measure=measure,
        sources=names,
        fit_sources=torch.zeros(0, dtype=torch.long),
        held_out_sources=torch.zeros(0, dtype=torch.long),
        measure_sources=sources,
    )


def compared(directory: Path, given: TokenSet, *, generates: bool = True) -> Comparison:
    before, after = (Subject(name=name, model=tiny_model(), directory=directory) for name in ("before", "after"))
    with torch.no_grad():
        after.model.lm_head.weight.mul_(3.0)
    fractions: list[float] = []
    original = Original(subject=before, tokens=given, tokenizer=byte_tokenizer(), generates=generates, seed=0)
    found = original.finish(original.compare(after, advance=fractions.append), after)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    return found


def test_each_text_is_measured_apart(directory: Path) -> None:
    given = tokens("file:a.txt", "org/other")
    found = compared(directory, given)
    assert [one.name for one in found.texts] == ["file:a.txt", "org/other", "builtin:general", "self-generated"]
    assert [one.tokens for one in found.texts] == [4 * 31, 2 * 31, MEASURED_ELSEWHERE * 31, MEASURED_ELSEWHERE * 31]
    first = found.texts[0]
    assert (first.before, first.after) == (found.before.perplexity, found.after.perplexity)
    assert first.ratio == first.after / first.before
    other = Subject(name="before", model=tiny_model(), directory=directory)
    (alone,) = measure([other], given.measure[4:])
    assert found.texts[1].before == pytest.approx(alone.perplexity)
    assert len(found.answers_before) == len(found.answers_after) == 5


@pytest.mark.parametrize(
    ("names", "measured"),
    [
        (["file:a.txt", "builtin:prose"], ["file:a.txt", "builtin:prose"]),
        (["builtin:pydoc-topics"], ["builtin:pydoc-topics", "builtin:general"]),
        (["file:a.txt"], ["file:a.txt", "builtin:general"]),
    ],
)
def test_which_texts_are_measured_where_nothing_is_generated(
    directory: Path, names: list[str], measured: list[str]
) -> None:
    """A model that is read block by block generates nothing; built-in text of the calibration is not measured twice."""
    found = compared(directory, tokens(*names), generates=False)
    assert [one.name for one in found.texts] == measured
    assert not found.answers_before
    assert not found.answers_after


def test_predictions_that_differ_are_counted(directory: Path) -> None:
    """The second model has three times the logits: the same first choices, but surer of them."""
    for text in compared(directory, tokens("file:a.txt"), generates=False).texts:
        assert text.agreement == 1
        assert text.divergence > 0.01
    model = tiny_model()
    with torch.inference_mode():
        logits = model(input_ids=token_ids(2, LENGTH, seed=3)).logits.flatten(0, 1)
    apart = Divergence()
    apart.add(logits, logits.flip(0))
    wanted, found = logits.log_softmax(-1), logits.flip(0).log_softmax(-1)
    assert apart.mean_nats == pytest.approx(float((wanted.exp() * (wanted - found)).sum(-1).mean()), rel=1e-4)
    assert apart.agreement == pytest.approx(float((logits.argmax(-1) == logits.flip(0).argmax(-1)).float().mean()))
