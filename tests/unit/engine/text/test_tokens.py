"""Token sequences of one length: packed, drawn from the texts of a mix, of repeated passages, as many as fit."""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from replaceme_core.engine.text.drawing import TokenSet, alternating
from replaceme_core.engine.text.tokens import (
    FEWEST_SAMPLES,
    calibration_tokens,
    encode,
    pack,
    sized_to_text,
    with_self_generated,
)
from replaceme_core.errors import CalibrationTooSmall, InvalidInput
from replaceme_core.hardware import WorkerKind
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.defaults import GENERAL_SHARE, OWN_SHARE
from replaceme_core.request.resolve import Machine, ResolvedSpec, resolve_spec
from replaceme_core.request.spec import CompressionSpec, EvaluationSpec
from tests.fixtures.models.activations import of_one_source
from tests.fixtures.models.tiny import byte_tokenizer

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def text_of(ids: list[int]) -> str:
    return byte_tokenizer().decode(ids)


@pytest.mark.parametrize(
    ("documents", "running", "length", "limit", "expected"),
    [
        (["abcdefg", "hij"], False, 4, 100, ["abcd", "efg<|end|>", "hij<|end|>"]),  # full, nothing is padded
        (["ab", "cd", "ef"], True, 6, 1, ["abcdef"]),  # no ends within a running text
        (itertools.repeat("abcdefgh"), True, 4, 3, ["abcd", "efgh", "abcd"]),  # reading stops at the limit
    ],
)
def test_sequences_are_packed_full(
    documents: Iterable[str], running: bool, length: int, limit: int, expected: list[str]
) -> None:
    tokenizer = byte_tokenizer()
    encoded = encode(documents, tokenizer, running_text=running)
    packed = pack(encoded, tokenizer, length=length, limit=limit).sequences
    assert [text_of(row.tolist()) for row in packed] == expected


def test_a_tokenizer_gets_a_long_document_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 16 million letters took 4 GB at once."""
    monkeypatch.setattr("replaceme_core.engine.text.tokens.READ_AT_ONCE", 3)
    tokenizer, given = byte_tokenizer(), list[str]()
    read = type(tokenizer).__call__

    def reading(self: PreTrainedTokenizerFast, text: str, **options: Any) -> object:
        given.append(text)
        return read(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", reading)
    (ids,) = encode(["abcdefgh"], tokenizer)
    assert text_of(ids) == "abcdefgh<|end|>"
    assert given == ["abc", "def", "gh"]


def test_a_beginning_token_leads_each_sequence_where_the_tokenizer_adds_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    packed = pack(encode(["abcdefgh"], tokenizer, running_text=True), tokenizer, length=5, limit=9).sequences
    assert packed[:, 0].tolist() == [begin, begin]
    assert text_of(packed[1, 1:].tolist()) == "efgh"


CONVERSATION = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize(
    ("template", "has", "expected"),
    [
        ("auto", True, "<user>hi<assistant>yo"),
        ("chat", True, "<user>hi<assistant>yo"),
        ("plain", True, "hi\n\nyo"),
        ("auto", False, "hi\n\nyo"),
        ("chat", False, None),
    ],
)
def test_conversations_go_through_the_template_where_there_is_one(
    template: str, has: bool, expected: str | None
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT if has else None
    encoded = encode([CONVERSATION], tokenizer, template=template)
    if expected is None:
        with pytest.raises(InvalidInput, match="no chat template"):
            list(encoded)
    else:
        assert [text_of(ids) for ids in encoded] == [expected + "<|end|>"]


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
    """Three texts of 100 documents each, in which every letter says which text it is."""
    made = []
    for number, word in enumerate(TEXTS):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(json.dumps({"text": word * 10}) for _ in range(100)))
        made.append(path)
    return made


def mixed(shares: list[float | None], samples: int, **fields: object) -> ResolvedSpec:
    sources = [{"dataset": f"file:{number}.jsonl", "share": share} for number, share in enumerate(shares)]
    return resolved({"sources": sources, "samples": samples}, **fields)


def tokens_of(spec: ResolvedSpec, paths: Sequence[Path | None]) -> TokenSet:
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
    measured = {name: letters(part) for name, part in tokens.measured_texts.items()}
    assert list(measured.items()) == list(zip(tokens.sources, (["a"] * 8, ["b"] * 2, ["c"] * 2), strict=True))
    assert len(set(tokens.fit_sources[:28].tolist())) == 3, "shuffled"
    assert sorted(tokens.held_out_sources[:4].tolist()) == [0, 0, 1, 2], "they alternate"
    again = tokens_of(mixed([0.5, 0.25, 0.25], 64), paths)
    for name in ("fit", "held_out", "measure", "fit_sources", "held_out_sources", "measure_sources"):
        assert torch.equal(getattr(tokens, name), getattr(again, name)), "the same seed gives the same"


def test_sources_of_one_data_set_have_names_of_their_own(paths: list[Path]) -> None:
    """Results are by name: one text would take the place of another."""
    of_x = [{"config": "en"}, {"config": "de"}, {"config": "de", "split": "test"}, {}]
    sources = [{"dataset": "org/y"}, *({"dataset": "org/x", **options} for options in of_x)]
    tokens = tokens_of(resolved({"sources": sources, "samples": 64}), [*paths, *paths[:2]])
    assert tokens.sources == (
        "org/y",
        "org/x (config en, split train)",
        "org/x (config de, split train)",
        "org/x (config de, split test)",
        "org/x (split train)",
    )
    two = [{"dataset": "org/x"}, {"dataset": "org/x", "config": "de"}]
    assert tokens_of(resolved({"sources": two, "samples": 64}), paths[:2]).sources == ("org/x", "org/x (config de)")


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


def test_an_end_that_the_model_does_not_know_is_refused(paths: list[Path]) -> None:
    """No text has it where all is one text; but the model's own text begins with it."""
    tokenizer = byte_tokenizer()
    running = paths[0].with_suffix(".txt")
    running.write_text("a" * 4000)
    given = mixed([None], 8)
    with pytest.raises(InvalidInput, match="gives id 256, but the model has 256"):
        calibration_tokens(given, tokenizer, paths=[running], vocabulary=256)


@pytest.mark.parametrize(
    ("sources", "order"),
    [([], []), ([0, 0, 0, 0, 1, 1], [0, 4, 1, 2, 5, 3]), ([0, 1, 1, 0, 2], [0, 1, 4, 3, 2])],
)
def test_every_beginning_has_each_source_by_its_share(sources: list[int], order: list[int]) -> None:
    """The sequences of one source keep their order."""
    assert alternating(torch.tensor(sources, dtype=torch.long)).tolist() == order


def test_generated_sequences_are_mixed_with_the_text() -> None:
    spec = one_text(0.5)
    text = of_one_source(
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


def test_all_of_it_may_be_generated_and_the_text_still_measures() -> None:
    tokens = tokens_of(one_text(1.0), [None, None])
    assert (len(tokens.fit), len(tokens.held_out), len(tokens.measure)) == (0, 4, 8)
    assert tokens.sources == ("builtin:pydoc-topics", "self-generated")
    unmeasured = one_text(1.0).model_copy(update={"evaluation": EvaluationSpec(enabled=False)})
    tokens = tokens_of(unmeasured, [None, None])
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
        tokens_of(resolved(calibration, compute=compute), [None])
    assert refused.value.field == field


USUAL = 64


def sized(calibration: dict[str, object], *texts: Path | int, measured: bool = True, at: Path) -> ResolvedSpec:
    """`texts` are files, or numbers of sequences of files that are written into `at`."""
    paths = []
    for number, text in enumerate(texts):
        path = at / f"{number}.txt" if isinstance(text, int) else text
        if isinstance(text, int):
            path.write_text("\n".join(["a few words, and"] * text))
        paths.append(path)
    requested = CalibrationSpec.model_validate(
        {"dataset": "file:0.txt", **calibration} if texts[1:] == () else calibration
    )
    body = {
        "model": {"repo_id": "org/tiny"},
        "ratio": 0.5,
        "calibration": requested.model_dump() | {"samples": requested.samples or USUAL, "max_length": LENGTH},
        "evaluation": {"enabled": measured},
        "method": {"name": "least_squares"},
        "compute": {"dtype": "float32", "batch_size": 4},
    }
    spec = resolve_spec(CompressionSpec.model_validate(body), Machine(kind=WorkerKind.CPU), values=1000)
    padded = [*paths, *[None] * (len(spec.calibration.mix) - len(paths))]
    return sized_to_text(spec, byte_tokenizer(), requested=requested, paths=padded)


ALONE: dict[str, object] = {"self_generated": 0}
SEVERAL = {"sources": [{"dataset": f"file:{number}.txt"} for number in range(3)]}
TWO = {"sources": [{"dataset": f"file:{number}.txt", "share": 0.5} for number in range(2)]}


@pytest.mark.parametrize(
    ("calibration", "sequences", "samples"),
    [
        (ALONE, [80], range(USUAL, USUAL + 1)),
        ({**ALONE, "samples": 40}, [24], range(40, 41)),  # a named number is kept
        (ALONE, [FEWEST_SAMPLES], range(USUAL, USUAL + 1)),  # too few: drawing says how many are needed
        ({}, [30], range(FEWEST_SAMPLES + 1, USUAL)),  # beside own text and a text to judge on
        (TWO, [400, 20], range(32, 40)),  # the shortest decides
        (SEVERAL, [12] * 3, range(24, 36)),  # each has a held-out sequence
        (SEVERAL, [8] * 3, range(USUAL, USUAL + 1)),
    ],
)
def test_a_short_text_gives_fewer_sequences(
    calibration: dict[str, object], sequences: list[int], samples: range, tmp_path: Path
) -> None:
    found = sized(calibration, *sequences, at=tmp_path).calibration
    assert found.samples in samples
    if not calibration:
        shares = [source.share for source in found.mix]
        assert shares == [1 - OWN_SHARE - GENERAL_SHARE, OWN_SHARE, GENERAL_SHARE], "they stay"


@pytest.mark.parametrize("sequences", [24, 71])
def test_a_short_text_leaves_some_to_measure(tmp_path: Path, sequences: int) -> None:
    found = sized(ALONE, sequences, at=tmp_path)
    samples = found.calibration.samples
    assert 0.85 * sequences <= samples < sequences
    tokens = tokens_of(found, [tmp_path / "0.txt"])
    assert len(tokens.fit) + len(tokens.held_out) == samples
    assert len(tokens.measure) >= samples // 8
    without = sized(ALONE, sequences, measured=False, at=tmp_path)
    assert without.calibration.samples == samples, "an evaluation must not change what calibrates"


def test_too_short_a_text_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    found = sized(ALONE, FEWEST_SAMPLES, at=tmp_path)
    with pytest.raises(CalibrationTooSmall, match=r"64 x 16 = 1024 are needed .*or ask for at most 15 samples"):
        tokens_of(found, [tmp_path / "0.txt"])
    path = tmp_path / "a.jsonl"
    path.write_text('{"other": 1}\n')
    with pytest.raises(InvalidInput):
        sized({"dataset": "file:a.jsonl", "self_generated": 0}, path, at=tmp_path)
