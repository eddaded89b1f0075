"""The options that describe a job: every field of the request has one, alone and beside a file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import Result

from api.cli.main import app
from replaceme_core.request.calibration import CalibrationSource
from replaceme_core.request.gate import GateSpec
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


def test_every_field_of_a_source_may_be_in_an_option(service: StubService) -> None:
    texts = dict.fromkeys(("revision", "config", "split", "column"), "x")
    source = {"dataset": "org/data", **texts, "template": "plain", "share": 0.5}
    assert set(source) == set(CalibrationSource.model_fields) - {"self_generated"}
    sources = [source, {"self_generated": True, "share": 0.5}]
    options = [option for one in sources for option in ("--calibration", json.dumps(one))]
    done = submit(service, "--model", "org/name", "--ratio", "0.5", *options)
    assert done.exit_code == 0, done.output
    assert sent(service)["calibration"] == {"sources": sources}


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
    "heal": {
        "tokens": 2000,
        "dataset": {"dataset": "org/other", "split": "test"},
        "learning_rate": 0.001,
        "time_budget_seconds": 60.0,
        "weights": "some",
    },
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
    "--ridge-later 0.5 --replays 2 --time-budget 60 --heal-tokens 2000 "
    '--heal-dataset {"dataset":"org/other","split":"test"} --heal-learning-rate 0.001 --heal-time-budget 60 '
    "--heal-weights some --evaluation-samples 4 --output org/small --public "
    "--overwrite --no-create-pr --device cpu --dtype float32 --batch-size 2 --threads 1 --loading whole "
    "--label team=nlp --priority 7 --max-queue-seconds 10 --max-runtime-seconds 20 --credential mine "
    "--tasks piqa,sciq --task-limit 10 --few-shot 2 --gate perplexity_ratio<=1.6 --gate tasks.piqa>=0.9 "
    "--webhook https://a.example/x --webhook-event failed --webhook-payload full --webhook-signed-by w1"
)


def test_options_make_the_same_request_as_a_file(service: StubService, tmp_path: Path) -> None:
    """So do those of `plan`, which has no webhook."""
    service.answers["POST /plans"] = [(200, {"model": {"repo_id": "org/name", "supported": True}})]
    (tmp_path / "job.json").write_text(json.dumps(EVERYTHING))
    file = ["--file", str(tmp_path / "job.json")]
    of_a_job, _, _ = AS_OPTIONS.partition(" --webhook ")
    without = {name: value for name, value in EVERYTHING.items() if name != "webhook"}
    for arguments, request in (
        (["submit", *AS_OPTIONS.split()], ("POST /jobs", EVERYTHING)),
        (["submit", *file], ("POST /jobs", EVERYTHING)),
        (["plan", *of_a_job.split()], ("POST /plans", without)),
        (["plan", *file], ("POST /plans", without)),
    ):
        done = run_at(service, *arguments)
        assert done.exit_code == 0, done.output
        assert service.received.pop() == request


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


MIXED = {"dataset": "org/a", "self_generated": 0.5, "general": 0.2, "repeated": 0.1}


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
            "# YAML\n{model: org/name, ratio: 0.5, calibration: [org/a, org/b], method: drop}",
            "--revision v1 --samples 64 --replays 2",
            {
                "model": {"repo_id": "org/name", "revision": "v1"},
                "ratio": 0.5,
                "calibration": {"sources": ["org/a", "org/b"], "samples": 64},
                "method": {"name": "drop", "replays": 2},
            },
        ),
        (
            "# YAML\n{model: org/name, drop: [2], calibration: org/data}",
            "--ratio max:0.5 --gate perplexity_ratio<=1.6",
            {
                "model": "org/name",
                "ratio": {"max": 0.5},
                "calibration": "org/data",
                "gate": {"perplexity_ratio": {"max": 1.6}},
            },
        ),
        (
            json.dumps({"model": "org/name", "ratio": 0.5, "calibration": MIXED}),
            "--calibration org/b=0.5 --calibration org/c",
            {
                "model": "org/name",
                "ratio": 0.5,
                "calibration": {"repeated": 0.1, "sources": [{"dataset": "org/b", "share": 0.5}, {"dataset": "org/c"}]},
            },
        ),
    ],
    ids=["every part", "short forms", "the deepest cut replaces blocks", "a mix replaces the shares beside one text"],
)
def test_options_replace_what_the_file_says(service: StubService, text: str, options: str, expected: object) -> None:
    """The file is standard input here."""
    done = submit(service, "--file", "-", *options.split(), stdin=text)
    assert done.exit_code == 0, done.output
    assert sent(service) == expected


NAMED = "{model: org/name"


def test_numbers_in_yaml_are_decimal(service: StubService) -> None:
    """A commit that begins as a number is none."""
    model = "{repo_id: org/name, revision: 12e4f}"
    text = f"drop: [010, 0011, 12]\ncalibration: {{dataset: org/data, samples: 1_024, seed: 0}}\nmodel: {model}"
    done = submit(service, "--file", "-", stdin=text)
    assert done.exit_code == 0, done.output
    assert sent(service)["drop"] == [10, 11, 12]
    assert sent(service)["model"] == {"repo_id": "org/name", "revision": "12e4f"}
    assert sent(service)["calibration"] == {"dataset": "org/data", "samples": 1024, "seed": 0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{NAMED}, ratio: 1.5, calibration: org/data}}", "ratio: expected a number greater than 0 and less than 1"),
        (f"{NAMED}, ratio: 0.5, calibration: {{dataset: org/a, x: 3}}}}", "calibration.x: unknown field; the known"),
        (f"{NAMED}, ratio: .nan, calibration: org/data}}", "ratio: expected a number"),
        (f"{NAMED}, ratio: 0.5, calibration: org/data, max_runtime_seconds: 1:30}}", "max_runtime_seconds: expected"),
        (f"{NAMED}, ratio: 0.5, calibration: org/data, labels: {{day: 3}}}}", "labels.day: expected a string"),
        ("ratio: 0.5\nratio: 0.25", "ratio is given twice"),
        ('{"ratio": 0.5, "ratio": 0.25}', "ratio is given twice"),
        ("1: 2", "expected a name, got 1"),
        ("a: &x [1]\nb: *x", "aliases are not supported"),
        ("a: [", "this is not YAML"),
        ('{"a": ', "this is not JSON"),
        ("just text", "expected the fields of a job"),
        ("", "expected the fields of a job"),
        ("x: " + "y" * 70_000, "is larger than 65,536 bytes"),
        ("[" * 1000, "cannot be read"),
        (b"\xff\xfe", "not UTF-8"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_a_file_that_is_no_job(service: StubService, tmp_path: Path, text: str | bytes, words: str) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    file = tmp_path / ("job.json" if content.startswith(b'{"') else "job.yaml")
    file.write_bytes(content)
    done = submit(service, "--file", str(file), "--json")
    assert done.exit_code == 2, done.output
    assert done.stderr.count(words) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "invalid_input"
    assert service.received == []


def command_of(name: str) -> Any:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return group.resolve_command(typer.Context(group), [name])[1]


def help_of(name: str, option: str) -> str:
    return next(str(one.help) for one in command_of(name).params if option in one.opts)


def test_the_help_says_what_is_true_of_its_command() -> None:
    assert all(name in help_of("submit", "--gate") for name in GateSpec.model_fields)
    assert help_of("submit", "--ratio").count("the deepest cut") == 1
    for name in ("heal", "reproduce"):  # neither takes the fastest device: both repeat what was recorded
        assert help_of(name, "--device").endswith("Default: that of the result.")
    update = command_of("webhooks").commands["update"]  # changes what is named, and nothing else
    assert not [one.name for one in update.params if "Default: " in (one.help or "") and one.name != "api_key"]


@pytest.mark.parametrize("name", ["compress", "submit"])
def test_the_help_names_only_options_that_exist(name: str) -> None:
    command = command_of(name)
    known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    named = {option for one in command.params for option in re.findall(r"--[a-z-]+", getattr(one, "help", None) or "")}
    assert named - known == set()


def test_options_that_are_refused(service: StubService) -> None:
    """Before anything is sent, and all that is wrong at once."""
    sources = [("--calibration", text) for text in ("{", "[1]{", '{"share": 1}', '{"dataset": 3}')]
    data = ("--calibration", "org/data")
    labels = (*data, "--label", "team=a", "--label", "team=b")
    for options in (*sources, (*data, "--junit", "gate.xml"), labels, ("--file", "none.yaml"), ("--file", ".")):
        done = submit(service, "--model", "org/name", "--ratio", "0.5", *options)
        assert (done.exit_code, "Traceback" in done.stderr) == (2, False), options
    done = submit(service, "--model", "org/name", "--ratio", "2", *data, "--priority", "12")
    first, *lines = done.stderr.splitlines()
    assert first == "error: 2 fields are wrong"
    assert [line.split(":")[0].strip() for line in lines] == ["ratio", "priority"]
    assert service.received == []


def test_a_job_that_is_only_validated(service: StubService) -> None:
    plan = {"model": {"repo_id": "org/name", "supported": True}, "refusals": []}
    service.answers["POST /jobs"] = [(200, plan)]
    wanted = ["--model", "org/name", "--ratio", "0.5", "--calibration", "org/data", "--validate-only", "--json"]
    done = submit(service, *wanted)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"]["repo_id"] == "org/name"
    assert sent(service)["validate_only"] is True
