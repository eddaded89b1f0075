"""Perplexity of models beside each other, confidence intervals, and the stream that saves a second run."""

import math
import statistics
from pathlib import Path

import pytest
import torch

from replaceme_core.engine.activations.cache import ActivationCache
from replaceme_core.engine.evaluation import measure as module
from replaceme_core.engine.evaluation.compare import ratio_interval
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.evaluate import evaluate
from replaceme_core.engine.evaluation.measure import (
    TIMED,
    Divergence,
    Subject,
    mean_interval,
    measure,
    quantile,
)
from replaceme_core.engine.model import block_runner
from replaceme_core.engine.model.lazy_model import load_lazily
from replaceme_core.engine.model.load import load_model
from replaceme_core.errors import CalibrationTooSmall, InvalidInput, NumericalFailure
from replaceme_core.families.resolve import resolve
from replaceme_core.runner.messages import EvaluateRequest
from tests.fixtures.models.tiny import BY_NAME, byte_tokenizer, save_tiny, tiny_model, token_ids

TEXT = "Nothing is as good as a second opinion.\n\n" * 30


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def test_perplexity_is_that_of_the_models_own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save_tiny(tmp_path / "model", tie_word_embeddings=True)
    model = load_model(directory, dtype=torch.float32, device="cpu")
    tokens = token_ids(5, 16)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 2 * 16 * 260)  # batches of two: 2, 2, 1
    fractions: list[float] = []
    (measured,) = measure([Subject(name="tiny", model=model, directory=directory)], tokens, advance=fractions.append)
    with torch.inference_mode():
        expected = math.exp(float(model(input_ids=tokens, labels=tokens).loss))
    assert measured.perplexity == pytest.approx(expected, rel=1e-5)
    assert fractions == pytest.approx([1 / 3, 2 / 3, 1])
    assert measured.tokens == 5 * 15
    assert measured.bytes == (directory / "model.safetensors").stat().st_size
    assert measured.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert measured.tokens_per_second > 0


@pytest.mark.parametrize("lazily", [False, True])
def test_logits_are_made_in_parts(directory: Path, monkeypatch: pytest.MonkeyPatch, lazily: bool) -> None:
    """With a large vocabulary those of one sequence take more memory than the model."""
    monkeypatch.setattr(block_runner, "LOGITS_AT_ONCE_BY_BLOCK" if lazily else "LOGITS_AT_ONCE", 5 * 260)
    load = load_lazily if lazily else load_model
    models = [load(directory, dtype=torch.float32, device="cpu") for _ in range(2)]
    sizes: list[int] = []
    models[0].get_output_embeddings().register_forward_hook(lambda *seen: sizes.append(seen[2].shape[1]))
    tokens, apart = token_ids(3, 16), Divergence()
    first, _ = measure(
        [Subject(name="tiny", model=model, directory=directory) for model in models], tokens, divergence=apart
    )
    with torch.inference_mode():
        expected = math.exp(float(load_model(directory, dtype=torch.float32, device="cpu")(tokens, labels=tokens).loss))
    assert first.perplexity == pytest.approx(expected, rel=1e-5)
    assert (max(sizes), sum(sizes)) == (5, 3 * 15)
    assert (apart.tokens, apart.agreement, apart.mean_nats) == (3 * 15, 1, 0)


def test_models_take_batches_in_turn(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a slow minute of the machine is shared by both sides of a comparison."""
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 1)
    subjects, order = [], []
    for name in "ab":
        model = load_model(directory, dtype=torch.float32, device="cpu")
        resolve(model).blocks[0].mlp.register_forward_hook(lambda *_, name=name: order.append(name))
        subjects.append(Subject(name="tiny", model=model, directory=directory))
    first, second = measure(subjects, token_ids(3, 16))
    assert "".join(order) == "ab" + "ababab"
    assert first.perplexity == second.perplexity


def evaluated(directory: Path, **text: object) -> list[dict[str, object]]:
    asked = {"model_directory": str(directory), "samples": 4, "max_length": 64, "threads": 1, **text}
    models = evaluate(EvaluateRequest.model_validate(asked))["models"]
    assert isinstance(models, list)
    return models


def test_a_perplexity_that_is_not_finite_is_a_failure_that_names_the_model(directory: Path) -> None:
    model = load_model(directory, dtype=torch.float32, device="cpu")
    model.get_output_embeddings().weight.data.mul_(float("inf"))
    with pytest.raises(
        NumericalFailure, match=r"perplexity of the pruned model is not a number in float32.*compute\.dtype"
    ):
        measure([Subject(name="the pruned model", model=model, directory=directory)], token_ids(1, 16))


@pytest.mark.usefixtures("brief_reports")
def test_models_beside_each_other_on_a_text(tmp_path: Path, directory: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1, num_hidden_layers=2)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    first, again, smaller = evaluated(directory, text_path=str(text), others=(str(directory), str(other)))
    ids = byte_tokenizer()(TEXT, return_tensors="pt")["input_ids"][:, : 4 * 64].reshape(4, 64)
    with torch.inference_mode():
        loss = float(load_model(directory, dtype=torch.float32, device="cpu")(input_ids=ids, labels=ids).loss)
    assert (first["perplexity"], first["dtype"]) == (pytest.approx(math.exp(loss), rel=1e-4), "float32")
    assert first["byte_perplexity"] == pytest.approx(first["perplexity"]), "each token is a byte"
    words = sum(len(TEXT[start + 1 : start + 64].split()) for start in range(0, 4 * 64, 64))
    assert first["word_perplexity"] == pytest.approx(math.exp(loss * 4 * 63 / words), rel=1e-4)
    assert (first["ratio"], first["told_apart"]) == (None, None)
    assert (again["ratio"], again["ratio_low"], again["ratio_high"]) == (1, 1, 1)
    assert smaller["ratio"] == pytest.approx(smaller["perplexity"] / first["perplexity"])  # type: ignore[operator]
    assert smaller["ratio_low"] < smaller["ratio"] < smaller["ratio_high"]  # type: ignore[operator]
    assert evaluated(directory, builtin="builtin:code", samples=2)[0]["tokens"] == 2 * 63
    assert smaller["speed"]["cache_bytes_per_token"] * 3 == first["speed"]["cache_bytes_per_token"]  # type: ignore[index]
    assert smaller["speed"]["peak_bytes"] < first["speed"]["peak_bytes"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("a" * 100, CalibrationTooSmall, "has 100 tokens, which fill 1 sequence of 64; 4 are needed"),
        (None, InvalidInput, "there is no file"),
    ],
)
def test_too_little_text(
    tmp_path: Path, directory: Path, content: str | None, error: type[InvalidInput], message: str
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_text(content)
    with pytest.raises(error, match=message):
        evaluated(directory, text_path=str(text))


@pytest.mark.parametrize(
    "more", [{"builtin": "builtin:code"}, {"prompts": ("Why?",)}], ids=lambda more: next(iter(more))
)
def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, more: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="the model has 64 embeddings: tokenizer and model do not belong together"):
        evaluated(save_tiny(tmp_path / "small", vocab_size=64), **more)


@pytest.mark.usefixtures("brief_reports")
def test_sequences_end_where_the_shortest_table_of_positions_does(tmp_path: Path, directory: Path) -> None:
    table = save_tiny(tmp_path / "table", variant=BY_NAME["gpt2"], max_position_embeddings=32)
    text = {"builtin": "builtin:code", "samples": 2, "others": (str(table),)}
    assert [one["tokens"] for one in evaluated(directory, max_length=None, **text)] == [2 * 31] * 2
    with pytest.raises(InvalidInput, match="table has 32 positions, and sequences of 64 tokens") as raised:
        evaluated(directory, **text)
    assert (raised.value.field, raised.value.value) == ("max_length", 64)


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (30, 2.042), (31, 2.0395), (1000, 1.9623)])
def test_quantiles_of_students_t(degrees: int, expected: float) -> None:
    assert quantile(degrees) == pytest.approx(expected, abs=5e-4)


def test_pairs_are_compared_not_means() -> None:
    """Sequences differ far more than the models do on each of them."""
    before = [10.0, 200.0, 400.0, 800.0]
    after = [loss + 10 * math.log(1.5) + noise for loss, noise in zip(before, (0.1, -0.1, 0.1, -0.1), strict=True)]
    assert mean_interval([1.0, 2.0]) is None
    assert ratio_interval([2.0, 4.0], [3.0, 4.5], predictions=10) is None
    low, high = ratio_interval(before, after, predictions=10) or (math.nan, math.nan)
    assert low < 1.5 < high
    assert high - low < 0.1
    assert math.sqrt(low * high) == pytest.approx(
        math.exp(statistics.fmean(after) / 10 - statistics.fmean(before) / 10)
    )


SEQUENCES, LENGTH = 5, 16


@pytest.mark.parametrize(
    ("name", "limit"),
    [("llama", None), ("llama", 100), ("gemma2", 2**30), ("granite", 2**30)],
)
def test_it_runs_once_and_its_numbers_stay_the_same(
    name: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = BY_NAME[name]
    directory, sequences = save_tiny(tmp_path / "model", variant=variant), token_ids(SEQUENCES, LENGTH)
    model, pruned = tiny_model(variant), tiny_model(variant, seed=1)
    monkeypatch.setattr("replaceme_core.engine.evaluation.measure.LOGITS_AT_ONCE", 1)
    passes: list[int] = []
    resolve(model).blocks[0].mlp.register_forward_hook(lambda *_: passes.append(1))

    def measured(results: DenseResults, speeds: list[float]) -> tuple[list[float], Divergence]:
        before = Subject(name="the source model", model=model, directory=directory, results=results, speeds=speeds)
        after, apart = Subject(name="pruned", model=pruned, directory=directory), Divergence()
        measure([before, after], sequences, divergence=apart)
        return before.losses, apart

    caches = [] if limit is None else [ActivationCache(tmp_path / "cache", limit=limit)]
    with DenseResults(caches=caches).for_several(beside=tmp_path / "out") as results:
        speeds: list[float] = []
        found = [measured(results, speeds) for _ in range(3)]
        assert len(passes) == 1 + SEQUENCES, "a warm-up, and each batch once"
        assert len(speeds) == SEQUENCES
        assert results.reused == [], "what this run has found is not of an earlier one"
        measured(results, [])
        assert len(passes) == 1 + SEQUENCES + 1 + TIMED, "as many as its speed needs"
    assert found[0] == found[1] == found[2]
    assert found[0] == measured(DenseResults(), [])
    assert torch.isfinite(torch.tensor(found[0][0])).all()
    assert not list(tmp_path.glob(".out*")), "nothing is left beside the output"
    later = DenseResults(caches=caches)
    assert measured(later, []) == found[0]
    assert later.reused == (["text"] if limit == 2**30 else [])
