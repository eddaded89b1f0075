"""What a pipeline reads: JUnit XML and the step summary, of `compress` and of a job."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from api.cli.output.ci import STEP_SUMMARY, Ended, write_for_pipeline
from api.client.models import Job
from tests.fixtures.cli.stub_service import a_job

CRITERIA = [
    {"name": "perplexity_ratio", "value": 1.75, "min": None, "max": 1.6, "passed": False},
    {"name": "agreement", "value": 0.8, "min": 0.7, "max": None, "passed": True},
]
TRIALS = [
    {"blocks": 2, "passed": False, "measured": {"perplexity_ratio": 2.5}, "seconds": 30.0},
    {"blocks": 1, "passed": True, "measured": {"perplexity_ratio": 1.5, "accuracy_kept": 0.9}, "seconds": 40.0},
]
REJECTED = {
    "status": "failed",
    "error": {"code": "gate_rejected", "message": "the result misses its gate"},
    "gate": {"passed": False, "criteria": CRITERIA, "trials": TRIALS},
    "started_at": "2026-11-25T00:00:00Z",
    "finished_at": "2026-11-25T00:01:30Z",
}


def ended(**fields: object) -> Ended:
    return Ended.of_job(Job.model_validate(a_job(**fields)))


def suite(text: str) -> ElementTree.Element:
    (found,) = ElementTree.fromstring(text)
    return found


def test_each_criterion_is_a_case() -> None:
    found = suite(ended(**REJECTED).as_junit())
    assert [found.get(name) for name in ("tests", "failures", "errors", "time")] == ["2", "1", "0", "90.000"]
    missed, passed = found
    assert missed.get("name") == "perplexity_ratio at most 1.6"
    assert [(one.tag, one.get("message")) for one in missed] == [
        ("failure", "perplexity_ratio is 1.75, at most 1.6 is wanted")
    ]
    assert [child.tag for child in passed] == ["system-out"]


def test_without_a_gate_the_job_is_the_case() -> None:
    error = {"code": "out_of_memory", "message": "8 GB \x00 & <more>"}
    shown = [("error", "out_of_memory", "8 GB \\u0000 & <more>")]
    cancelled = [("error", "cancelled", "the job was cancelled")]
    for fields, cases in (
        ({"status": "succeeded"}, []),
        ({"status": "failed", "error": error}, shown),
        ({"status": "cancelled"}, cancelled),
    ):
        found = suite(ended(**fields).as_junit())
        (case,) = found
        assert (found.get("tests"), found.get("errors")) == ("1", str(len(cases)))
        assert [(child.tag, child.get("type"), child.get("message")) for child in case] == cases


def test_the_summary_has_every_criterion_and_trial_and_no_markup_of_others() -> None:
    text = ended(**{**REJECTED, "spec": {"model": {"repo_id": "acme/<b>|x"}}}).as_markdown()
    assert "## Compression of acme/\\<b\\>\\|x: failed" in text
    assert "**`gate_rejected`** the result misses its gate" in text
    assert "| **perplexity_ratio** | 1.75 | at most 1.6 | ✗ missed |" in text
    assert "| agreement | 0.8 | at least 0.7 | passed |" in text
    trials = (
        "| Blocks removed | Perplexity ratio | Accuracy kept | Gate | Time |\n"
        "| --- | ---: | ---: | --- | ---: |\n"
        "| 1 \\* | 1.500 | 90.0 % | passed | 40 s |\n"
        "| 2 | 2.500 | – | ✗ missed | 30 s |\n"
    )
    assert trials in text
    change = {"before": 2.0, "after": 1.0}
    result = {"repo_id": "acme/small", "revision": "b" * 40, "removed_blocks": [2, 3], "kept_blocks": [0, 1]}
    summary = {"blocks": change, "parameters": change, "perplexity": {"before": 20.5, "after": None}}
    text = ended(status="succeeded", result=result, summary=summary).as_markdown()
    for row in ("| removed | 2 blocks: 2-3 |", "| Parameters | 2 | 1 | -50.0 % |", "| Perplexity | 20.50 | – |"):
        assert row in text
    assert "Blocks removed" not in text


def test_the_best_trials_of_a_model_of_images_have_a_star() -> None:
    trials = [
        {"blocks": blocks, "passed": blocks < 3, "measured": {"embedding_distance": 0.01 * blocks}, "seconds": 30.0}
        for blocks in (1, 2, 3)
    ]
    gate = {"passed": True, "criteria": [], "trials": trials}
    text = ended(status="succeeded", gate=gate).as_markdown()
    assert [line.split(" | ")[0] for line in text.splitlines() if "0.0" in line] == ["| 1 \\*", "| 2 \\*", "| 3"]


def test_a_file_that_cannot_be_written_is_a_note_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv(STEP_SUMMARY, str(summary))
    write_for_pipeline(ended(**REJECTED), junit=Path("/dev/full"))
    assert "warning: /dev/full cannot be written: No space left on device" in capsys.readouterr().err
    assert "gate_rejected" in summary.read_text(), "the other one is written all the same"
