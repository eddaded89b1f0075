"""`--gate` of `compress`: what is sent, what is printed, and the exit code."""

import json
from pathlib import Path

import pytest

from tests.fixtures.cli.local import Run

Base = tuple[str | Path, ...]


@pytest.fixture
def base(model: Path, text: Path) -> Base:
    return ("compress", model, "--out", "out", "--ratio", "0.25", "--calibration", text)


def test_a_result_that_passes(replaceme: Run, base: Base, tmp_path: Path) -> None:
    done = replaceme(*base, "--gate", "perplexity_ratio<=1.5", "--gate", "agreement >= 0.5", "--json")
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer)[-1] == "gate"
    assert answer["gate"]["passed"] is True
    sent = json.loads((tmp_path / "out" / "replaceme.json").read_text())["request"]["spec"]["gate"]
    assert {name: limits for name, limits in sent.items() if limits} == {
        "perplexity_ratio": {"min": None, "max": 1.5},
        "agreement": {"min": 0.5, "max": None},
    }


def test_a_result_that_misses_is_kept(replaceme: Run, base: Base, tmp_path: Path) -> None:
    done = replaceme(*base, "--gate", "perplexity_ratio<=1.4", "--gate", "agreement>=0.5")
    assert done.exit_code == 4, done.stderr
    assert "perplexity_ratio is 1.5, at most 1.4 is wanted; the result is kept in out" in " ".join(done.stderr.split())
    row = next(line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["perplexity_ratio"])
    assert row == ["perplexity_ratio", "1.5", "at", "most", "1.4", "✗", "missed"]
    assert (tmp_path / "out" / "replaceme.json").is_file()


def test_the_deepest_cut(replaceme: Run, model: Path, text: Path, tmp_path: Path) -> None:
    options = ("--ratio", "max:0.5", "--gate", "perplexity_ratio<=1.5", "--calibration", text)
    done = replaceme("compress", model, "--out", "out", *options, mode="searches")
    assert done.exit_code == 0, done.stderr
    sent = json.loads((tmp_path / "out" / "replaceme.json").read_text())["request"]["spec"]
    assert sent["ratio"] == {"max": 0.5}
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["1", "*", "(taken)", "1.500", "90.0", "%", "passed", "2.0", "s"] in rows
    assert ["2", "*", "2.500", "–", "✗", "missed", "1.0", "s"] in rows


@pytest.mark.parametrize("ratio", ["max:nan", "least:0.5", "inf"])
def test_a_ratio_that_is_none(replaceme: Run, model: Path, text: Path, ratio: str) -> None:
    done = replaceme("compress", model, "--out", "out", "--ratio", ratio, "--calibration", text)
    assert done.exit_code == 2
    assert "expected a number such as 0.25, or max:0.5" in " ".join(done.stderr.split())


def test_the_deepest_cut_of_nothing(replaceme: Run, model: Path, text: Path) -> None:
    done = replaceme("compress", model, "--out", "out", "--ratio", "max:0.5", "--calibration", text)
    assert done.exit_code == 2
    assert "give gate, such as" in " ".join(done.stderr.split())


def test_a_runner_that_does_not_judge(replaceme: Run, base: Base) -> None:
    done = replaceme(*base, "--gate", "size_ratio<=0.9", mode="ungated")
    assert done.exit_code == 4
    assert "did not judge the gate" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--gate", "perplexity_ratio<1.6"), "expected a criterion such as"),
        (("--gate", "perplexity<=1.6"), "gate.perplexity"),
        (("--gate", "tasks.piqa>=0.5"), "name piqa in evaluation.tasks"),
        (("--gate", "agreement>=0.5", "--gate", "agreement<=0.4"), "no value is at least 0.5"),
        (("--gate", "agreement>=0.5", "--no-evaluate"), "turn evaluation.enabled on"),
    ],
)
def test_a_gate_that_means_nothing(
    replaceme: Run, base: Base, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    done = replaceme(*base, *options)
    assert done.exit_code == 2, done.stderr
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()
