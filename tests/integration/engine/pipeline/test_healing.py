"""A result is trained toward the original where that is asked for: it gains, or stays as it was."""

import errno
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, trainer

from benchmarks.harness import tiny_models
from replaceme_core.engine.healing import heal as training
from replaceme_core.engine.healing.heal import TARGETS_PART, TRAINING_PART
from replaceme_core.engine.healing.targets import PASSAGE, HealingText
from replaceme_core.engine.methods.task import Task
from replaceme_core.engine.pipeline import compress
from replaceme_core.errors import CalibrationTooSmall, InvalidInput
from replaceme_core.report.page import plots_of
from replaceme_core.request.defaults import HEAL_BATCH
from replaceme_core.runner.messages import Finished, RunnerRequest, Stage
from tests.fixtures.models import tiny
from tests.fixtures.models.pipeline import TEXT, request, run
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import save_trained

SEQUENCES = 78  # the last step has half of its sequences
HEAL = {"tokens": 32 * SEQUENCES, "learning_rate": 6e-4}
Run = tuple[Finished, Recorder, Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trained(tmp_path_factory.mktemp("trained") / "source", TEXT)


@pytest.fixture
def source(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "source")


def asked(source: Path, *, out: str = "out", heal: object = HEAL, **fields: object) -> RunnerRequest:
    """Blocks are removed and nothing compensates for them, so that there is something to win back."""
    text = {"dataset": "file:text.txt", "samples": 48, "max_length": 32}
    usual = {"evaluation": {"enabled": False, "samples": 4}, "calibration": text, "heal": heal}
    one = request(source, method={"name": "drop"}, **{**usual, **fields})
    return one.model_copy(update={"output_directory": str(source.parent / out)})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    found, expected = weights(one), weights(other)
    return all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture(scope="module")
def undisturbed(trained: Path) -> Run:
    """A training that nothing ends early."""
    return run(asked(trained, out="undisturbed"))


@pytest.fixture(scope="module")
def plain(trained: Path) -> Run:
    """Without training."""
    return run(asked(trained, out="plain", heal=None))


def test_a_healed_model_is_better_and_says_that_it_was_trained(source: Path, undisturbed: Run, plain: Run) -> None:
    finished, progress, out = run(asked(source, evaluation={"samples": 4}))
    assert progress.stages[-4:] == [Stage.FOLD, Stage.HEAL, Stage.SAVE, Stage.EVALUATE]
    healing = finished.report["healing"]
    assert isinstance(healing, dict)
    assert (healing["is_kept"], healing["problem"], healing["sequences"]) == (True, None, SEQUENCES)
    assert healing["tokens"] == healing["losses"][-1]["tokens"] == 32 * SEQUENCES
    assert healing["parameters"] == sum(
        values.numel()
        for name, values in weights(out).items()
        if name != "model.embed_tokens.weight" and values.ndim > 1
    )
    for row in healing["panel"]:
        assert row["healed"] < row["closed_form"] - 0.02
        assert row["original"] < row["closed_form"]
    losses = [row["loss"] for row in healing["losses"]]
    assert losses[-1] < 0.5 * losses[0]
    assert progress.values("heal_loss") == losses
    assert [plot.name for plot in plots_of(finished.report) if plot.name == "healing"] == ["healing"]
    card, page = ((out / name).read_text() for name in ("README.md", "report.html"))
    assert "were trained afterwards" in card
    assert "distillation of its 100 likeliest tokens" in card
    assert f"{32 * SEQUENCES:,} tokens of" in card
    for text in (card, page):
        assert "raining-free" not in text
        assert "othing was trained" not in text
    assert "Untrained" in page
    assert same(undisturbed[2], out), "the evaluation decides nothing"
    assert (plain[2] / "config.json").read_text() == (out / "config.json").read_text()
    assert "nothing was trained" in (plain[2] / "README.md").read_text()
    embeddings = "model.embed_tokens.weight"
    assert torch.equal(weights(out)[embeddings], weights(plain[2])[embeddings])


def test_what_a_class_keeps_in_float32_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias that chooses experts would be rounded to values that choose others."""
    small = {"num_hidden_layers": 4, "first_k_dense_replace": 1, "n_routed_experts": 2, "num_experts_per_tok": 1}
    config = tiny_models.tiny_config("glm4_moe", vocab_size=260, **small)
    monkeypatch.setattr(tiny, "tiny_config", lambda: config)
    source = save_trained(tmp_path / "source", TEXT, steps=40)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    finished, _, out = run(asked(source, drop=[1, 2]))
    assert finished.report["healing"]["is_kept"]  # type: ignore[index]
    found = {name.split(".", 3)[-1]: values.dtype for name, values in weights(out).items()}
    assert found["mlp.gate.e_score_correction_bias"] == found["mlp.gate.weight"] == torch.float32
    assert found["self_attn.o_proj.weight"] == torch.bfloat16


def first_losses(finished: Finished) -> list[float]:
    """Of the first steps of the training."""
    return [row["loss"] for row in finished.report["healing"]["losses"][:5]]  # type: ignore[index]


def test_how_large_the_weights_of_a_model_are_does_not_matter(source: Path, undisturbed: Run) -> None:
    """The same function, with one projection of each MLP 16 times as large and the next one as much smaller."""
    found = weights(source)
    for name, values in found.items():
        values *= 16.0 if ".up_proj." in name else 1 / 16 if ".down_proj." in name else 1.0
    save_file(found, source / "model.safetensors", metadata={"format": "pt"})
    scaled, _, _ = run(asked(source))
    as_it_was = pytest.approx(first_losses(undisturbed[0]), rel=0.5)
    assert first_losses(scaled) == as_it_was, "with one rate for all weights it is three times as large"


def test_an_earlier_result_in_several_files_is_healed_into_one(source: Path, undisturbed: Run, plain: Run) -> None:
    split = source.parent / "split"
    AutoModelForCausalLM.from_pretrained(plain[2]).save_pretrained(split, max_shard_size="20KB")
    assert len(list(split.glob("*.safetensors"))) > 1
    template = split / "additional_chat_templates" / "rag.jinja"
    template.parent.mkdir()
    template.write_text("{{ documents }}")
    given = {"pruned_directory": str(split), "pruned_by": "refit"}
    again, _, out = run(asked(source, drop=plain[0].removed_blocks).model_copy(update=given))
    assert again.report["healing"]["is_kept"]  # type: ignore[index]
    assert again.report["chosen_method"] == "refit", "what made it, not what this request says"
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert (out / template.relative_to(split)).read_text() == "{{ documents }}"
    assert same(out, undisturbed[2])


class Killed(BaseException):
    """In place of kill -9."""


class Mortal(Recorder):
    """Dies when this part of the stage `heal` is done."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def advance(self, fraction: float) -> None:
        super().advance(fraction)
        if self.stages[-1] is Stage.HEAL and fraction >= self.end:
            raise Killed


def test_killed_while_the_original_runs_and_twice_in_training_it_gives_the_same_bytes(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    mixed = {"calibration": {"dataset": "file:text.txt", "samples": 48, "max_length": 32, "self_generated": 0.25}}
    _, _, undisturbed = run(asked(source, out="undisturbed", **mixed))
    place = {"checkpoint_directory": str(source.parent / "checkpoints")}
    for life, end in enumerate((0.1, 0.55, 0.7)):
        with pytest.raises(Killed):
            compress(asked(source, out=f"killed-{life}", **mixed).model_copy(update=place), Mortal(end))
    finished, _, out = run(asked(source, **mixed).model_copy(update=place))
    assert (out / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    again, before = (json.loads((where / "replaceme.json").read_text())["healing"] for where in (out, undisturbed))
    assert again["losses"] == before["losses"]
    assert [row["mean"] for row in again["judged"]] == [row["mean"] for row in before["judged"]]
    assert sorted(path.name for path in source.parent.iterdir() if path.name.startswith(".")) == []
    assert finished.kept_blocks


def test_half_a_checkpoint_is_not_used(source: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    place = {"checkpoint_directory": str(source.parent / "checkpoints")}
    with pytest.raises(Killed):
        compress(asked(source, out="killed").model_copy(update=place), Mortal(0.6))
    (checkpoint,) = (source.parent / "checkpoints").glob("heal-*/checkpoint-*")
    (checkpoint / "trainer_state.json").write_text('{"epoch": 0.')
    _, _, out = run(asked(source).model_copy(update=place))
    assert same(out, undisturbed[2])


def test_killed_while_an_old_checkpoint_is_removed_it_goes_on_from_the_new_one(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    lives, known, remove = [0], training.loss_of, trainer.rotate_checkpoints

    def counted(*given: Any) -> torch.Tensor:
        lives[-1] += 1
        return known(*given)

    def killed(**given: Any) -> None:
        remove(**given)
        if Path(given["output_dir"], "checkpoint-8").exists():
            raise Killed

    monkeypatch.setattr(training, "loss_of", counted)
    monkeypatch.setattr(trainer, "rotate_checkpoints", killed)
    place = {"checkpoint_directory": str(source.parent / "checkpoints")}
    with pytest.raises(Killed):
        run(asked(source, out="killed").model_copy(update=place))
    monkeypatch.setattr(trainer, "rotate_checkpoints", remove)
    lives.append(0)
    run(asked(source).model_copy(update=place))
    assert lives == [8, math.ceil(SEQUENCES / HEAL_BATCH) - 8]


def test_the_last_checkpoint_is_not_in_the_speed_of_the_training(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, save, since = training.time.monotonic, trainer.Trainer._save_checkpoint, [0.0]

    def slowly(*given: Any, **named: Any) -> None:
        save(*given, **named)
        since[0] += 1e6

    monkeypatch.setattr(training.time, "monotonic", lambda: clock() + since[0])
    monkeypatch.setattr(trainer.Trainer, "_save_checkpoint", slowly)
    finished, _, _ = run(asked(source))
    assert finished.report["healing"]["tokens_per_second"] > 1  # type: ignore[index]


def test_a_training_that_ended_early_is_not_gone_on_with(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the worker is lost between its end and the result."""
    monkeypatch.setattr(training, "HEAL_JUDGED_TOKENS", 0)
    heal, place = {**HEAL, "learning_rate": 1.0}, {"checkpoint_directory": str(source.parent / "checkpoints")}
    undisturbed, _, _ = run(asked(source, out="undisturbed", heal=heal))
    with pytest.raises(Killed):
        compress(asked(source, out="lost", heal=heal).model_copy(update=place), Mortal(TARGETS_PART + TRAINING_PART))
    finished, _, _ = run(asked(source, heal=heal).model_copy(update=place))
    once, again = (one.report["healing"] for one in (undisturbed, finished))
    assert isinstance(once, dict) and isinstance(again, dict)
    assert "had not become better" in once["ended_early"]
    assert once["tokens"] < 32 * SEQUENCES
    for name in ("ended_early", "tokens", "losses"):
        assert again[name] == once[name]
    assert [row["mean"] for row in again["judged"]] == [row["mean"] for row in once["judged"]]


def unhealed(source: Path, plain: Run, heal: object = HEAL) -> str:
    """Why nothing came of a training; the result is the model without it."""
    finished, _, out = run(asked(source, heal=heal))
    assert same(out, plain[2])
    healing, (warning,) = finished.report["healing"], finished.report["warnings"]  # type: ignore[misc]
    assert isinstance(healing, dict)
    assert healing["is_kept"] is False
    assert warning["code"] == "not_healed"
    assert healing["problem"] in warning["message"]
    card = (out / "README.md").read_text()
    assert "nothing was trained" in card
    assert "was tried, and did not help" in card
    assert "a short fine-tuning usually wins back a part" not in card  # this one has not
    return f"{healing['problem']} {healing['ended_early']}"


def test_a_training_that_makes_it_worse_changes_nothing(source: Path, plain: Run) -> None:
    assert "no state of the training was better" in unhealed(source, plain, {**HEAL, "learning_rate": 1.0})


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory: 2.00 GiB"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (None, "its loss was no number"),
    ],
    ids=["memory", "disk", "NaN"],
)
def test_a_training_that_fails_changes_nothing(
    source: Path, plain: Run, error: Exception | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = training.loss_of

    def failing(*given: Any) -> torch.Tensor:
        if error is not None:
            raise error
        return known(*given) * torch.nan

    monkeypatch.setattr(training, "loss_of", failing)
    assert why in unhealed(source, plain)


def test_a_budget_of_time_ends_the_training(source: Path) -> None:
    finished, _, _ = run(asked(source, heal={"tokens": 32 * 1000, "time_budget_seconds": 1.0, "learning_rate": 6e-4}))
    healing = finished.report["healing"]
    assert isinstance(healing, dict)
    assert 0 < healing["tokens"] < 32 * 1000
    assert "time budget of 1 seconds" in healing["ended_early"]


def texts(source: Path, other: str) -> tuple[RunnerRequest, Path]:
    """A request that trains on another file."""
    path = source.parent / "other.txt"
    path.write_text(other, encoding="utf-8")
    one = asked(source, heal={**HEAL, "dataset": {"dataset": "file:other.txt"}})
    return one.model_copy(update={"calibration_paths": (*one.calibration_paths, str(path))}), path


def test_it_trains_on_another_text(source: Path) -> None:
    one, _ = texts(source, TEXT.replace("sheep", "goats"))
    finished, _, _ = run(one)
    (_, text) = finished.report["calibration_texts"]  # type: ignore[misc]
    assert (text["name"], list(text["files"])) == ("file:other.txt", ["other.txt"])


def test_a_text_that_is_too_short_is_refused_before_anything_is_computed(source: Path) -> None:
    one, _ = texts(source, "".join(TEXT.splitlines(keepends=True)[:20]))
    progress = Recorder()
    with pytest.raises(
        CalibrationTooSmall, match=rf"file:other.txt has [\d,]+ tokens .* {32 * SEQUENCES:,} are to be trained on"
    ) as caught:
        compress(one, progress)
    assert caught.value.field == "heal.tokens"
    assert progress.stages == [Stage.CALIBRATE]
    assert not Path(one.output_directory).exists()


def test_documents_that_judge_or_measure_are_not_trained_on(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[HealingText] = []
    tokens = []
    known = HealingText.of.__func__  # type: ignore[attr-defined]

    def spied(cls: type[HealingText], task: Task, *rest: object, **more: object) -> HealingText:
        tokens.append(task.tokens)
        seen.append(known(cls, task, *rest, **more))
        return seen[-1]

    monkeypatch.setattr(HealingText, "of", classmethod(spied))
    one, _ = texts(source, "".join(f"{line}\n\n" for line in TEXT.splitlines()))
    text = source.parent / "text.txt"
    text.write_text("".join(f"{line}\n\n" for line in TEXT.splitlines()), encoding="utf-8")
    run(one)

    def passages(rows: torch.Tensor) -> Iterator[tuple[int, ...]]:
        for row in rows.tolist():
            yield from (tuple(row[start : start + PASSAGE + 8]) for start in range(len(row) - PASSAGE - 7))

    judged = {*passages(tokens[0].held_out), *passages(tokens[0].measure)}
    assert seen[0].read is not None
    assert judged
    assert judged.isdisjoint(passages(seen[0].read))


def test_another_text_under_the_same_name_is_read_anew(source: Path) -> None:
    """A file was changed between two attempts at a job: what the first one has written is of the other text."""
    first, path = texts(source, TEXT.replace("sheep", "goats"))
    place = {"checkpoint_directory": str(source.parent / "checkpoints")}
    with pytest.raises(Killed):
        compress(first.model_copy(update=place), Mortal(0.3))
    path.write_text(TEXT.replace("sheep", "geese"), encoding="utf-8")
    _, _, out = run(first.model_copy(update=place))
    _, _, undisturbed = run(first.model_copy(update={"output_directory": str(source.parent / "undisturbed")}))
    assert same(out, undisturbed)


def test_conversations_share_more_than_how_their_template_begins(source: Path) -> None:
    """In every one that judges there is the same text of the system, longer than a passage."""
    (source / "chat_template.jinja").write_text(
        "<You are a helpful assistant that counts sheep.>"
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    rows = source.parent / "other.jsonl"
    asks = [("user", "How many sheep are on farm {}?"), ("assistant", "There are {} of them, all of them white.")]
    turns = [[{"role": role, "content": words.format(farm)} for role, words in asks] for farm in range(100)]
    rows.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    calibration = {"dataset": "file:text.txt", "samples": 16, "max_length": 128, "judged_on": "builtin:general"}
    heal = {"tokens": 128 * 8, "dataset": {"dataset": "file:other.jsonl"}}
    one = asked(source, heal=heal, calibration=calibration)
    finished, _, _ = run(one.model_copy(update={"calibration_paths": (*one.calibration_paths, None, str(rows))}))
    assert finished.report["healing"]["sequences"] == 8  # type: ignore[index]


def test_without_the_library_that_trains_it_says_what_to_install(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.engine.healing.targets.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"pip install 'replaceme\[heal\]'"):
        run(asked(source))
