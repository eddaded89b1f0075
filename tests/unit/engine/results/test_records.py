"""What the report records: code, memory by stage, tensors that differ, warnings and disagreements."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from replaceme_core.engine.evaluation.compare import Answer, Comparison, TextResult
from replaceme_core.engine.evaluation.measure import Measurement
from replaceme_core.engine.methods.task import Candidate
from replaceme_core.engine.model.changes import Cut
from replaceme_core.engine.results import provenance
from replaceme_core.engine.results.outcome import disagreements, warnings_of
from replaceme_core.engine.results.provenance import compare_weights

COMMIT = "a" * 40


def git(place: Path, *words: str) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(
        ("git", *author, *words), cwd=place, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    checkout, second = tmp_path / "checkout", tmp_path / "second"
    checkout.mkdir()
    project = checkout / "pyproject.toml"
    project.write_text('[project]\nname = "replaceme"\n')
    git(checkout, "init")
    assert provenance._commit_of_checkout(checkout) is None, "nothing is committed"
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    git(checkout, "worktree", "add", str(second))
    commit = git(checkout, "rev-parse", "HEAD")
    assert len(commit) == 40
    assert provenance._commit_of_checkout(checkout) == provenance._commit_of_checkout(second) == commit
    project.write_text('name = "another"\n')
    assert provenance._commit_of_checkout(checkout) is None, "a repository of somebody else"
    assert provenance._commit_of_checkout(tmp_path / "missing") is None


def test_what_pip_installed_from_a_repository() -> None:
    url = f'{{"url": "https://example.org/x", "vcs_info": {{"vcs": "git", "commit_id": "{COMMIT}"}}}}'
    assert provenance._commit_of_url(url) == COMMIT
    assert provenance._commit_of_url('{"url": "file:///x", "dir_info": {"editable": true}}') is None
    assert provenance._commit_of_url(None) is None


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-library"))
    assert provenance._versions().keys() == {"python", "torch"}
    assert provenance._versions()["torch"] == version("torch")


def write(directory: Path, **tensors: torch.Tensor) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    return directory


def test_tensors_that_differ(tmp_path: Path) -> None:
    """The greatest difference comes first; signs of zero are bytes."""
    ones = torch.ones(3)
    plain = {"a": torch.tensor([1.0, -2.0, 4.0]), "b": ones.bfloat16(), "c": ones.half(), "d": ones, "zero": ones * 0.0}
    one = write(tmp_path / "one", **plain, gone=torch.ones(4))
    assert compare_weights(one, one) == {"same": True, "tensors": 6, "differing_tensors": 0, "differing": []}
    changed = {
        "a": torch.tensor([1.0, -2.5, 4.0]),
        "b": ones,
        "c": torch.ones(4, dtype=torch.float16),
        "d": ones * 2,
        "zero": ones * -0.0,
    }
    found = compare_weights(one, write(tmp_path / "other", **changed, new=torch.ones(5)))
    assert (found["same"], found["tensors"], found["differing_tensors"]) == (False, 6, 7)
    rows = {row["name"]: row for row in found["differing"]}  # type: ignore[attr-defined]
    assert [(name, row["what"]) for name, row in rows.items()] == [
        ("b", "dtype"),
        ("c", "shape"),
        ("gone", "missing"),
        ("new", "added"),
        ("d", "values"),
        ("a", "values"),
        ("zero", "values"),
    ]
    assert (rows["a"]["differing"], rows["a"]["values"], rows["a"]["largest"]) == (1, 3, 0.5)
    assert rows["a"]["relative"] == pytest.approx(0.5 / 21**0.5)


def compared(
    after: str = "Paris. Red. Air. Seven. def", *, before: str | None = None, loops: int = 0, **ratios: float
) -> Comparison:
    """Answers of the pruned model, a word each and `-` for none, the first of which loop; ratios of perplexity."""
    size = {"tokens": 100, "sequences": 4, "words": 50, "bytes": 300}
    measured = Measurement(
        perplexity=10.0, tokens=100, parameters=1, bytes=1, tokens_per_second=1.0, dtype="float32", blocks=2
    )
    said = after.split()
    sides = [(before or "a b c d e").split(), 0], [said, loops]
    asked, answered = (
        [
            Answer(prompt="?", text=text.strip("-"), tokens=(), loops=number < looping)
            for number, text in enumerate(texts)
        ]
        for texts, looping in sides
    )
    return Comparison(
        before=measured,
        after=measured,
        texts=[
            TextResult(name=name, before=10.0, after=10.0 * times, divergence=0.1, agreement=0.9, **size)
            for name, times in (ratios or {"home": 1.6}).items()
        ],
        answers_before=asked,
        answers_after=answered,
    )


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (None, None),
        (compared(), None),
        (compared("am am am Seven. def"), "answers_same"),
        (compared("am am am am am", before="am am am am am"), None),  # the source model is no better
        (compared("- - Air. Seven. def"), "answers_empty"),
        (compared(loops=2), "answers_loop"),
        (compared(loops=1), None),  # one of five
        (compared(home=1.6, own=3.3), "worse_elsewhere"),
        (compared(home=1.6, own=3.1), None),
        (compared(home=4.0, own=3.3), None),  # better than at home
    ],
    ids=str,
)
def test_what_is_worse_in_kind_is_a_warning(found: Comparison | None, code: str | None) -> None:
    assert [one for one, _ in warnings_of(found)] == [code] * (code is not None)


def row(start: int, a: float, b: float, **fields: object) -> Candidate:
    return Candidate(cut=Cut(start=start, end=start + 1), source_losses=(("a", a), ("b", b)), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("others", "found"),
    [
        ([row(3, 2.5, 5.0)], [{"source": "a", "start": 3, "end": 4, "loss": 2.5, "chosen_loss": 3.0}]),
        ([row(3, 3.0, 5.0)], []),  # all agree
        # no alternatives to it: a step, a group
        ([row(5, 2.0, 2.0, step=2), row(7, 2.0, 2.0, group=1)], []),
    ],
)
def test_a_source_that_prefers_another_window_is_named(others: list[Candidate], found: list[dict[str, object]]) -> None:
    assert disagreements([row(1, 3.0, 4.0, chosen=True), *others]) == found
    assert disagreements([Candidate(cut=Cut(start=1, end=2), chosen=True)]) == []


def test_losses_of_sources_are_an_object_in_the_report() -> None:
    assert row(1, 3.0, float("nan")).as_dict()["source_losses"] == {"a": 3.0, "b": None}
