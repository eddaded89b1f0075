"""What the report records: code, machine, memory by stage, tensors that differ, warnings and disagreements."""

import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme_core.engine.evaluation.compare import AnswerPair, TextResult
from replaceme_core.engine.methods.task import Candidate
from replaceme_core.engine.results import provenance, stage_clock
from replaceme_core.engine.results.outcome import Disagreement, disagreements, warnings_of
from replaceme_core.engine.results.provenance import compare_weights
from replaceme_core.engine.results.stage_clock import MemorySampler, StageClock, resident_bytes
from replaceme_core.errors import NumericalFailure
from replaceme_core.runner.messages import Stage
from tests.fixtures.models.recorder import Recorder

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "replaceme"\n')
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    return tmp_path


def test_a_packed_branch_and_a_detached_head(checkout: Path) -> None:
    (checkout / ".git" / "refs" / "heads" / "main").unlink()
    (checkout / ".git" / "packed-refs").write_text(f"# pack-refs\n{OTHER} refs/heads/x\n{COMMIT} refs/heads/main\n")
    assert provenance._commit_of_checkout(checkout) == COMMIT
    (checkout / ".git" / "HEAD").write_text(f"{OTHER}\n")
    assert provenance._commit_of_checkout(checkout) == OTHER


def test_a_second_work_tree(checkout: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (second / "pyproject.toml").write_text('name = "replaceme"\n')
    own = checkout / ".git" / "worktrees" / "second"
    own.mkdir(parents=True)
    (second / ".git").write_text(f"gitdir: {own}\n")
    (own / "HEAD").write_text("ref: refs/heads/main\n")
    (own / "commondir").write_text("../..\n")
    assert provenance._commit_of_checkout(second) == COMMIT


def test_a_repository_of_somebody_else_says_nothing(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text('name = "another"\n')
    assert provenance._commit_of_checkout(checkout) is None
    assert provenance._commit_of_checkout(checkout / "missing") is None


def test_what_pip_installed_from_a_repository() -> None:
    url = f'{{"url": "https://example.org/x", "vcs_info": {{"vcs": "git", "commit_id": "{COMMIT}"}}}}'
    assert provenance._commit_of_url(url) == COMMIT
    assert provenance._commit_of_url('{"url": "file:///x", "dir_info": {"editable": true}}') is None
    assert provenance._commit_of_url(None) is None


def test_the_digest_is_always_known() -> None:
    assert len(str(provenance.code_version()["digest"])) == 64


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-library"))
    assert provenance._versions().keys() == {"python", "torch"}
    assert provenance._versions()["torch"] == version("torch")


TENSORS = {
    "a": torch.tensor([1.0, -2.0, 4.0]),
    "b": torch.zeros(2, 2, dtype=torch.bfloat16),
    "c": torch.ones(3, dtype=torch.float16),
}


def write(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_the_same_bytes(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", TENSORS), write(tmp_path / "other", TENSORS)
    assert compare_weights(one, other) == {"same": True, "tensors": 3, "differing_tensors": 0, "differing": []}


def test_every_kind_of_difference(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {**TENSORS, "gone": torch.ones(4)})
    changed = {
        "a": torch.tensor([1.0, -2.5, 4.0]),
        "b": torch.zeros(2, 2),
        "c": torch.ones(4, dtype=torch.float16),
        "new": torch.ones(5),
    }
    found = compare_weights(one, write(tmp_path / "other", changed))
    assert (found["same"], found["tensors"], found["differing_tensors"]) == (False, 4, 5)
    rows = {row["name"]: row for row in found["differing"]}  # type: ignore[attr-defined]
    assert {name: row["what"] for name, row in rows.items()} == {
        "a": "values",
        "b": "dtype",
        "c": "shape",
        "gone": "missing",
        "new": "added",
    }
    assert (rows["a"]["differing"], rows["a"]["values"], rows["a"]["largest"]) == (1, 3, 0.5)
    assert rows["a"]["relative"] == pytest.approx(0.5 / 21**0.5)


def test_the_greatest_difference_comes_first(tmp_path: Path) -> None:
    names = [f"tensor{number}" for number in range(5)]
    one = write(tmp_path / "one", {name: torch.ones(2) for name in names})
    other = write(tmp_path / "other", {name: torch.full((2,), 1.0 + place) for place, name in enumerate(names)})
    found = compare_weights(one, other)["differing"]
    assert [row["name"] for row in found] == ["tensor4", "tensor3", "tensor2", "tensor1"]  # type: ignore[attr-defined]
    assert load_file(one / "model.safetensors").keys() == set(names)


CPU = torch.device("cpu")


def test_a_clock_samples_while_it_is_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_clock, "FIRST_SECONDS", 0.01)
    clock = StageClock(progress=Recorder(), device=CPU)
    with clock:
        for stage in (Stage.CALIBRATE, Stage.SELECT):
            clock.begin(stage)
            time.sleep(0.05)
        clock.end()
    samples = clock.times().memory
    assert {sample.stage for sample in samples} == {"calibrate", "select"}
    assert [sample.seconds for sample in samples] == sorted(sample.seconds for sample in samples)
    assert samples[-1].bytes == pytest.approx(resident_bytes(), rel=0.5)
    time.sleep(0.05)
    assert clock.times().memory == samples, "it has stopped"


def test_there_are_never_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time half of them go, and the time between two doubles."""
    monkeypatch.setattr(stage_clock, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(stage_clock, "MOST_SAMPLES", 8)
    sampler = MemorySampler(CPU, stage=lambda: "solve")
    sampler.start()
    time.sleep(0.1)
    sampler.stop()
    seconds = [sample.seconds for sample in sampler.samples]
    assert 4 <= len(seconds) < 8
    assert seconds[-1] > 0.03


def test_a_run_that_fails_ends_its_sampling() -> None:
    clock = StageClock(progress=Recorder(), device=CPU)

    def fail() -> None:
        with clock:
            clock.begin(Stage.CALIBRATE)
            raise NumericalFailure("no map")

    with pytest.raises(NumericalFailure):
        fail()
    assert not [thread for thread in threading.enumerate() if thread.name == "memory-samples"]


def test_signs_of_zero_are_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a": torch.tensor([0.0])})
    other = write(tmp_path / "other", {"a": torch.tensor([-0.0])})
    assert compare_weights(one, other)["same"] is False


def answers(*after: str, loops: tuple[bool, ...] = (False,) * 5, before: str | None = None) -> list[AnswerPair]:
    return [
        AnswerPair(
            prompt=f"question {number}",
            before=f"answer {number}" if before is None else before,
            after=text,
            before_loops=False,
            after_loops=loops[number],
        )
        for number, text in enumerate(after)
    ]


@pytest.mark.parametrize(
    ("found", "codes"),
    [
        (answers("Paris.", "Red.", "Air.", "Seven.", "def"), []),
        (answers("I am", "I am", "I am", "Seven.", "def"), ["answers_same"]),
        (answers("", "", "Air.", "Seven.", "def"), ["answers_empty"]),
        (answers("a", "b", "c", "d", "e", loops=(True, True, False, False, False)), ["answers_loop"]),
        (answers("a", "b", "c", "d", "e", loops=(True, False, False, False, False)), []),  # one of five
        (answers("I am", "I am", "I am", "I am", "I am", before="I am"), []),  # the source model is no better
        ([], []),
    ],
)
def test_what_is_worse_in_kind(found: list[AnswerPair], codes: list[str]) -> None:
    warnings = warnings_of(found, [])
    assert [one.code for one in warnings] == codes
    assert all("pruned model" in one.message for one in warnings)


def text(name: str, times: float) -> TextResult:
    size = {"tokens": 100, "sequences": 4, "words": 50, "bytes": 300}
    return TextResult(name=name, before=10.0, after=10.0 * times, divergence=0.1, agreement=0.9, **size)


@pytest.mark.parametrize(
    ("texts", "codes"),
    [
        ([text("home", 1.6), text("own", 3.1)], []),
        ([text("home", 1.6), text("own", 3.3)], ["worse_elsewhere"]),
        ([text("home", 4.0), text("own", 3.3)], []),  # better than at home
        ([text("home", 4.0)], []),
    ],
)
def test_what_is_far_worse_on_other_text(texts: list[TextResult], codes: list[str]) -> None:
    found = warnings_of([], texts)
    assert [one.code for one in found] == codes
    assert all("on own text" in one.message and "home 1.6 times" in one.message for one in found)


def test_what_the_time_budget_left_out_is_a_warning() -> None:
    assert warnings_of([], []) == []
    (warning,) = warnings_of([], [], left_out=["the choice of runs of blocks", "the refit without blocks 3-5"])
    assert warning.code == "time_budget"
    assert "the choice of runs of blocks and the refit without blocks 3-5" in warning.message


def row(start: int, a: float, b: float, **fields: object) -> Candidate:
    return Candidate(start=start, end=start + 1, source_losses=(("a", a), ("b", b)), **fields)  # type: ignore[arg-type]


def test_a_source_that_prefers_another_window_is_named() -> None:
    rows = [row(1, 3.0, 4.0, chosen=True), row(3, 2.5, 5.0), row(5, 2.0, 2.0, estimated=True)]
    assert disagreements(rows) == [Disagreement(source="a", start=3, end=4, loss=2.5, chosen_loss=3.0)]


def test_where_all_agree_nothing_is_said() -> None:
    assert disagreements([row(1, 3.0, 4.0, chosen=True), row(3, 3.0, 5.0)]) == []
    assert disagreements([Candidate(start=1, end=2, chosen=True)]) == []


def test_steps_and_groups_are_no_alternatives() -> None:
    rows = [row(1, 3.0, 4.0, chosen=True, step=1), row(3, 2.0, 2.0, step=2)]
    assert disagreements(rows) == []
    assert disagreements([row(1, 3.0, 4.0, chosen=True), row(3, 2.0, 2.0, group=1)]) == []


def test_losses_of_sources_are_an_object_in_the_report() -> None:
    assert row(1, 3.0, float("nan")).as_dict()["source_losses"] == {"a": 3.0, "b": None}
