"""The sequences of several sources: how many of each, in which order, and that they know where they come from."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.engine.text.tokens import alternating, calibration_tokens, with_self_generated
from replaceme_core.errors import CalibrationTooSmall, InvalidInput
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.request.spec import EvaluationSpec
from tests.fixtures.models.tiny import byte_tokenizer

LENGTH = 16
VOCABULARY = 260
OWN = {"self_generated": True}
TEXTS = ("aaaa", "bbbb", "cccc")


def resolved(calibration: dict[str, object], **fields: object) -> ResolvedSpec:
    body: dict[str, object] = {
        "model": {"repo_id": "org/tiny"},
        "ratio": 0.5,
        "calibration": {"max_length": LENGTH, **calibration},
        "evaluation": {"samples": 8},
        "method": {"name": "least_squares"},
        "compute": {"device": "cpu", "dtype": "float32", "batch_size": 4, "threads": 1},
        **fields,
    }
    return ResolvedSpec.model_validate(body)


def one_text(share: float, samples: int = 64) -> ResolvedSpec:
    return resolved({"dataset": "builtin:pydoc-topics", "samples": samples, "self_generated": share})


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three texts of 300 documents each, in which every letter says which text it is."""
    made = []
    for number, word in enumerate(TEXTS):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(json.dumps({"text": word * 10}) for _ in range(300)))
        made.append(path)
    return made


def mixed(shares: list[float | None], samples: int, **fields: object) -> ResolvedSpec:
    sources = [{"dataset": f"file:{number}.jsonl", "share": share} for number, share in enumerate(shares)]
    return resolved({"sources": sources, "samples": samples}, **fields)


def tokens_of(spec: ResolvedSpec, paths: list[Path]) -> TokenSet:
    return calibration_tokens(spec, byte_tokenizer(), paths=paths, vocabulary=VOCABULARY)


def letters(tokens: torch.Tensor) -> list[str]:
    """The letter of each sequence, without the tokens that end a document."""
    return ["".join({byte_tokenizer().decode([one]) for one in row.tolist()} & {"a", "b", "c"}) for row in tokens]


def test_sequences_of_several_texts_know_their_source(paths: list[Path]) -> None:
    tokens = tokens_of(mixed([0.5, 0.25, 0.25], 64), paths)
    assert tokens.sources == ("file:0.jsonl", "file:1.jsonl", "file:2.jsonl")
    for part, sources, counts in (
        (tokens.fit, tokens.fit_sources, [28, 14, 14]),
        (tokens.held_out, tokens.held_out_sources, [4, 2, 2]),
        (tokens.measure, tokens.measure_sources, [8, 2, 2]),
    ):
        assert part.shape == (sum(counts), LENGTH)
        assert sources.dtype == torch.long
        assert sources.bincount(minlength=3).tolist() == counts
        assert letters(part) == ["abc"[int(source)] for source in sources]
    assert letters(tokens.measure_of_first_text()) == ["a"] * 8


def test_fit_sequences_are_shuffled_and_held_out_ones_alternate(paths: list[Path]) -> None:
    tokens = tokens_of(mixed([0.5, 0.25, 0.25], 64), paths)
    assert len(set(tokens.fit_sources[:28].tolist())) == 3
    assert sorted(tokens.held_out_sources[:4].tolist()) == [0, 0, 1, 2]


def test_a_source_that_is_added_does_not_change_the_draw_of_another(paths: list[Path], tmp_path: Path) -> None:
    for number, path in enumerate(paths):
        path.write_text("\n".join(json.dumps({"text": f"{number} document {index} " * 3}) for index in range(300)))
    both = tokens_of(mixed([0.5, 0.5], 64), paths[:2])
    three = tokens_of(mixed([0.25, 0.5, 0.25], 64), [paths[2], paths[1], paths[0]])
    found = [{tuple(row.tolist()) for row in tokens.fit[tokens.fit_sources == 1]} for tokens in (both, three)]
    assert found[0] == found[1]
    assert len(found[0]) == 28


def test_a_text_that_only_judges_is_held_out_and_not_fitted_on(paths: list[Path]) -> None:
    tokens = tokens_of(mixed([None, 0.0], 64), paths[:2])
    assert letters(tokens.fit) == ["a"] * 56
    assert sorted(letters(tokens.held_out)) == ["a"] * 8 + ["b"] * 4
    without = tokens_of(mixed([None], 64), paths[:1])
    assert torch.equal(tokens.fit, without.fit), "the draw of the first text does not depend on it"


def test_the_same_seed_gives_the_same_bytes(paths: list[Path]) -> None:
    spec = mixed([None, None, None], 32)
    once, twice = tokens_of(spec, paths), tokens_of(spec, paths)
    for name in ("fit", "held_out", "measure", "fit_sources", "held_out_sources", "measure_sources"):
        assert torch.equal(getattr(once, name), getattr(twice, name))


def test_errors_name_the_source(paths: list[Path]) -> None:
    paths[1].write_text('{"body": "b"}')
    with pytest.raises(InvalidInput, match="name one as column") as caught:
        tokens_of(mixed([None, None], 32), paths[:2])
    assert caught.value.field == "calibration.sources.1.column"
    paths[1].write_text('{"text": "b"}')
    with pytest.raises(CalibrationTooSmall, match=r"file:1\.jsonl has 2 tokens"):
        tokens_of(mixed([None, None], 32), paths[:2])


def test_a_tokenizer_of_another_model_is_refused(paths: list[Path]) -> None:
    with pytest.raises(InvalidInput, match="do not belong together") as caught:
        calibration_tokens(mixed([None], 8), byte_tokenizer(), paths=paths[:1], vocabulary=90)
    assert caught.value.field == "model"


@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_every_beginning_has_each_source_by_its_share(counts: list[int]) -> None:
    sources = torch.cat([torch.full((count,), number) for number, count in enumerate(counts)])
    sources = sources[torch.randperm(len(sources), generator=torch.Generator().manual_seed(0))]
    order = alternating(sources)
    assert sorted(order.tolist()) == list(range(len(sources)))
    placed = sources[order]
    for end in range(len(placed) + 1):
        for number, count in enumerate(counts):
            seen = int((placed[:end] == number).sum())
            assert abs(seen - end * count / max(1, len(placed))) <= len(counts)
    for number in range(len(counts)):
        assert order[placed == number].tolist() == sorted(order[placed == number].tolist())


def test_generated_sequences_are_mixed_with_the_text() -> None:
    spec = one_text(0.5)
    text = TokenSet.of_one_source(
        fit=torch.full((28, LENGTH), -1), held_out=torch.full((4, LENGTH), -2), measure=torch.full((2, LENGTH), -3)
    )
    found = with_self_generated(text, spec.calibration, lambda count: torch.arange(count).expand(LENGTH, -1).T)
    assert torch.equal(found.measure, text.measure)
    assert found.held_out_sources.tolist() == [0, 1] * 4
    for mixed_in, mark, count, sources in (
        (found.fit, -1, 56, found.fit_sources),
        (found.held_out, -2, 8, found.held_out_sources),
    ):
        assert len(mixed_in) == count
        from_text = (mixed_in == mark).all(1)
        assert torch.equal(from_text, sources == 0)
        assert int(from_text.sum()) == count // 2
        assert bool((mixed_in[~from_text] >= 0).all())
        assert from_text[: count // 2].any()
        assert (~from_text[: count // 2]).any()


def test_a_share_of_less_than_one_sequence_generates_nothing() -> None:
    text = TokenSet.of_one_source(fit=torch.zeros(1, 16), held_out=torch.zeros(1, 16), measure=torch.zeros(0, 16))
    spec = one_text(0.1, samples=2)
    assert with_self_generated(text, spec.calibration, lambda count: torch.zeros(count, LENGTH)) is text


def test_all_of_it_may_be_generated_and_the_text_still_measures() -> None:
    tokens = calibration_tokens(one_text(1.0), byte_tokenizer(), paths=[None, None], vocabulary=VOCABULARY)
    assert (len(tokens.fit), len(tokens.held_out), len(tokens.measure)) == (0, 4, 8)
    assert tokens.sources == ("builtin:pydoc-topics", "self-generated")
    unmeasured = one_text(1.0).model_copy(update={"evaluation": EvaluationSpec(enabled=False)})
    tokens = calibration_tokens(unmeasured, byte_tokenizer(), paths=[None, None], vocabulary=VOCABULARY)
    assert (len(tokens.fit), len(tokens.held_out), len(tokens.measure)) == (0, 4, 0)


@pytest.mark.parametrize(
    ("calibration", "field"),
    [
        ({"dataset": "builtin:code", "samples": 8, "self_generated": 0.5}, "calibration.self_generated"),
        ({"sources": [{"dataset": "builtin:code"}, OWN], "samples": 16}, "calibration.sources.1"),
    ],
)
def test_a_lazily_loaded_model_generates_nothing(calibration: dict[str, object], field: str) -> None:
    compute = {"device": "cpu", "dtype": "float32", "batch_size": 4, "threads": 1, "loading": "blockwise"}
    with pytest.raises(InvalidInput, match="read from disk for each token") as refused:
        calibration_tokens(
            resolved(calibration, compute=compute), byte_tokenizer(), paths=[None], vocabulary=VOCABULARY
        )
    assert refused.value.field == field
