"""The options that describe a job: every field of the request has one, alone and beside a file."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.bodies import JobWebhookRequest
from api.cli.job_request import OPTIONS
from api.cli.main import app
from replaceme_core.request.calibration import CalibrationSource
from tests.fixtures.cli.stub_service import StubService, a_job, run_at


@pytest.fixture(autouse=True)
def _takes_a_job(service: StubService) -> None:
    service.answers["POST /jobs"] = [(202, a_job())]


def submit(service: StubService, *arguments: str, stdin: str | None = None) -> Result:
    return run_at(service, "submit", *arguments, stdin=stdin)


def sent(service: StubService) -> dict[str, Any]:
    ((request, body),) = service.received
    assert request == "POST /jobs"
    assert isinstance(body, dict)
    return body


def test_every_field_of_a_webhook_has_an_option() -> None:
    """Those of the other parts are made from their fields."""
    paths = [option.path for option in OPTIONS]
    assert {path for path in paths if path.startswith("webhook.")} == {
        f"webhook.{name}" for name in JobWebhookRequest.model_fields
    }
    assert "compute.pattern_safe" in paths
    assert len({option.name for option in OPTIONS}) == len(set(paths)) == len(paths)


def test_every_field_of_a_source_may_be_in_an_option(service: StubService) -> None:
    source = {
        "dataset": "org/data",
        "revision": "v1",
        "config": "small",
        "split": "test",
        "column": "words",
        "template": "plain",
        "share": 0.5,
    }
    fields = CalibrationSource.model_fields
    assert set(source) == set(fields) - {"self_generated"}
    generated = {"self_generated": True, "share": 0.5}
    texts = [option for one in (source, generated) for option in ("--calibration", json.dumps(one))]
    done = submit(service, "--model", "org/name", "--ratio", "0.5", *texts)
    assert done.exit_code == 0, done.output
    assert sent(service)["calibration"] == {"sources": [source, generated]}


EVERYTHING = {
    "model": {"repo_id": "org/name", "revision": "v1"},
    "ratio": 0.25,
    "calibration": {
        "dataset": "org/data",
        "revision": "v2",
        "config": "c",
        "split": "test",
        "column": "words",
        "samples": 64,
        "max_length": 128,
        "seed": 3,
        "template": "plain",
        "self_generated": 0.25,
        "general": 0.125,
        "repeated": 0.25,
        "judged_on": "none",
    },
    "method": {"name": "auto", "ridge_later": 0.5, "replays": 2, "time_budget_seconds": 60.0},
    "evaluation": {"samples": 4, "tasks": ["piqa", "sciq"], "task_limit": 10, "few_shot": 2},
    "gate": {"perplexity_ratio": {"max": 1.6}, "tasks": {"piqa": {"min_kept": 0.9}}},
    "output": {"repo_id": "org/small", "private": False, "overwrite": True, "create_pr": False},
    "compute": {"device": "cpu", "dtype": "float32", "batch_size": 2, "threads": 1, "loading": "whole"},
    "labels": {"team": "nlp"},
    "priority": 7,
    "max_queue_seconds": 10.0,
    "max_runtime_seconds": 20.0,
    "credential": "mine",
    "webhook": {"url": "https://a.example/x", "events": ["failed"], "payload": "full", "signed_by": "w1"},
}
AS_OPTIONS = (
    "--model org/name --revision v1 --ratio 0.25 --calibration org/data --calibration-revision v2 "
    "--calibration-config c --calibration-split test --calibration-column words --samples 64 --max-length 128 --seed 3 "
    "--template plain --self-generated 0.25 --general 0.125 --repeated 0.25 --judged-on none --method auto "
    "--ridge-later 0.5 --replays 2 --time-budget 60 --evaluation-samples 4 --output org/small --public "
    "--overwrite --no-create-pr --device cpu --dtype float32 --batch-size 2 --threads 1 --loading whole "
    "--label team=nlp --priority 7 --max-queue-seconds 10 --max-runtime-seconds 20 --credential mine "
    "--tasks piqa,sciq --task-limit 10 --few-shot 2 --gate perplexity_ratio<=1.6 --gate tasks.piqa>=0.9 "
    "--webhook https://a.example/x --webhook-event failed --webhook-payload full --webhook-signed-by w1"
)


def test_options_make_the_same_request_as_a_file(service: StubService, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(EVERYTHING))
    for arguments in (AS_OPTIONS.split(), ["--file", str(tmp_path / "job.json")]):
        done = submit(service, *arguments)
        assert done.exit_code == 0, done.output
        assert sent(service) == EVERYTHING
        service.received.clear()


def test_an_option_for_the_deepest_cut(service: StubService, tmp_path: Path) -> None:
    """It replaces blocks that the file names."""
    (tmp_path / "job.yaml").write_text("{model: org/name, drop: [2], calibration: org/data}")
    options = ("--ratio", "max:0.5", "--gate", "perplexity_ratio<=1.6")
    done = submit(service, "--file", str(tmp_path / "job.yaml"), *options)
    assert done.exit_code == 0, done.output
    body = sent(service)
    assert body["ratio"] == {"max": 0.5}
    assert "drop" not in body
    refused = submit(service, "--file", str(tmp_path / "job.yaml"), "--ratio", "max:1.5", "--gate", "agreement>=0.5")
    assert "ratio.max: expected a number greater than 0 and less than 1, got 1.5" in refused.output


JOB = """\
# a job
model: {repo_id: org/name, revision: v1}
drop: [1, 2]
calibration:
  dataset: org/data
  split: test
  samples: 64
method: {name: least_squares, ridge: 1e-3}
labels: {team: nlp, day: 2026-11-27}
"""


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (
            JOB,
            "--ratio 0.5 --calibration builtin:code --seed 1 --label team=cv --replays 3 --model org/other",
            {
                "model": {"repo_id": "org/other"},
                "ratio": 0.5,
                "calibration": {"dataset": "builtin:code", "samples": 64, "seed": 1},
                "method": {"name": "least_squares", "ridge": 0.001, "replays": 3},
                "labels": {"team": "cv", "day": "2026-11-27"},
            },
        ),
        (
            "{model: org/name, ratio: 0.5, calibration: [org/a, org/b], method: drop}",
            "--revision v1 --samples 64 --replays 2",
            {
                "model": {"repo_id": "org/name", "revision": "v1"},
                "ratio": 0.5,
                "calibration": {"sources": ["org/a", "org/b"], "samples": 64},
                "method": {"name": "drop", "replays": 2},
            },
        ),
    ],
    ids=["every part", "short forms"],
)
def test_options_replace_what_the_file_says(
    service: StubService, tmp_path: Path, text: str, options: str, expected: object
) -> None:
    (tmp_path / "job.yaml").write_text(text)
    done = submit(service, "--file", str(tmp_path / "job.yaml"), *options.split())
    assert done.exit_code == 0, done.output
    assert sent(service) == expected


def test_a_mix_replaces_one_text_with_the_shares_beside_it(service: StubService, tmp_path: Path) -> None:
    text = {"dataset": "org/a", "self_generated": 0.5, "general": 0.2, "repeated": 0.1}
    (tmp_path / "job.yaml").write_text(json.dumps({"model": "org/name", "ratio": 0.5, "calibration": text}))
    submit(service, "--file", str(tmp_path / "job.yaml"), "--calibration", "org/b=0.5", "--calibration", "org/c")
    assert sent(service)["calibration"].keys() == {"sources", "repeated"}


@pytest.mark.parametrize("text", [json.dumps({"model": "org/name", "ratio": 0.5, "calibration": "org/data"}), JOB])
def test_a_job_from_standard_input(service: StubService, text: str) -> None:
    done = submit(service, "--file", "-", stdin=text)
    assert done.exit_code == 0, done.output
    assert sent(service)["model"] in ("org/name", {"repo_id": "org/name", "revision": "v1"})


NAMED = "{model: org/name"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{NAMED}, ratio: 1.5, calibration: org/data}}", "ratio: expected a number greater than 0 and less than 1"),
        (f"{NAMED}, ratio: 0.5, calibration: {{dataset: org/a, x: 3}}}}", "calibration.x: unknown field; the known"),
        (f"{NAMED}, ratio: 0.5, calibration: [{{dataset: org/a, share: 2}}, org/b]}}", "sources.0.share: expected"),
        (f"{NAMED}, ratio: 0.5}}", "calibration: required"),
        (f"{NAMED}, ratio: .nan, calibration: org/data}}", "ratio: expected a number"),
        (f"{NAMED}, ratio: 0.5, calibration: org/data, labels: {{day: 3}}}}", "labels.day: expected a string"),
        ("ratio: 0.5\nratio: 0.25", "ratio is given twice"),
        ("1: 2", "expected a name, got 1"),
        ("a: &x [1]\nb: *x", "aliases are not supported"),
        ("a: [", "this is not YAML"),
        ("just text", "expected the fields of a job"),
        ("", "expected the fields of a job"),
        ("x: " + "y" * 70_000, "is larger than 65,536 bytes"),
        ("[" * 5000, "cannot be read"),
    ],
    ids=lambda text: text[:30],
)
def test_a_file_that_is_no_job(service: StubService, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    done = submit(service, "--file", str(tmp_path / "job.yaml"), "--json")
    assert done.exit_code == 2, done.output
    assert done.stderr.count(words) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "invalid_input"
    assert service.received == []


@pytest.mark.parametrize("text", ["{", "[1]{", '{"share": 1}', '{"dataset": 3}'])
def test_a_source_that_is_none(service: StubService, text: str) -> None:
    assert submit(service, "--model", "org/name", "--ratio", "0.5", "--calibration", text).exit_code == 2
    assert service.received == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("job.json", b'{"ratio": 0.5, "ratio": 0.25}', "ratio is given twice"),
        ("job.json", b'{"a": ', "this is not JSON"),
        ("odd.yaml", b"\xff\xfe", "not UTF-8"),
        ("none.yaml", None, "No such file"),
        (".", None, "Is a directory"),
    ],
)
def test_a_file_that_cannot_be_read(
    service: StubService, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = submit(service, "--file", str(tmp_path / name))
    assert done.exit_code == 2
    assert words in done.stderr


def test_several_problems_are_listed_once(service: StubService) -> None:
    done = submit(service, "--model", "org/name", "--ratio", "2", "--calibration", "org/data", "--priority", "12")
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "error: 2 fields are wrong"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["ratio", "priority"]


def test_a_job_that_is_only_validated(service: StubService) -> None:
    plan = {"model": {"repo_id": "org/name", "supported": True}, "refusals": []}
    service.answers["POST /jobs"] = [(200, plan)]
    wanted = ["--model", "org/name", "--ratio", "0.5", "--calibration", "org/data", "--validate-only", "--json"]
    done = submit(service, *wanted)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"]["repo_id"] == "org/name"
    assert sent(service)["validate_only"] is True


def test_a_plan_of_the_file_of_a_job(service: StubService, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(EVERYTHING))
    service.answers["POST /plans"] = [(200, {"model": {"repo_id": "org/name", "supported": True}})]
    done = CliRunner().invoke(app, ["plan", "--url", service.url, "--file", str(tmp_path / "job.json")])
    assert done.exit_code == 0, done.output
    ((_, body),) = service.received
    assert body == {name: value for name, value in EVERYTHING.items() if name != "webhook"}
