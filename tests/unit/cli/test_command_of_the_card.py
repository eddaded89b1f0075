"""The command that a model card shows asks for what was carried out."""

import json
import shlex
from pathlib import Path

import pytest

from replaceme_core.report.card import as_command
from replaceme_core.request.resolve import ResolvedSpec
from tests.fixtures.cli.local import Run

TEXT = {"samples": 16, "max_length": 64, "seed": 3}
COMPUTE = {"device": "cpu", "dtype": "float32", "batch_size": 4, "threads": 2, "loading": "whole"}


@pytest.mark.parametrize(
    "fields",
    [
        {"ratio": 0.5, "method": {"name": "least_squares", "groups": 2, "ridge": 0.01, "replays": 3}},
        {"drop": [1, 2], "method": {"name": "refit", "selection": "window", "ridge_later": 0.5}},
        {"ratio": 0.25, "method": {"name": "auto", "time_budget_seconds": 60.0}, "evaluation": {"enabled": False}},
        {
            "ratio": 0.5,
            "method": {"name": "drop"},
            "gate": {"perplexity_ratio": {"min": 1.0, "max": 2.5}, "agreement": {"min": 0.25}},
        },
        {
            "ratio": 0.5,
            "method": {"name": "block_influence"},
            "evaluation": {"samples": 5, "tasks": ["piqa", "sciq"], "task_limit": 9, "few_shot": 2},
            "gate": {"tasks": {"piqa": {"min_kept": 0.5}}, "accuracy_kept": {"min": 0.5, "max": 1.5}},
        },
        {"ratio": 0.25, "method": {"name": "cosine", "loss": "light", "structure": "diagonal"}},
        {"ratio": 0.25, "method": {"name": "least_squares", "as_published": True}},
        {
            "ratio": 0.25,
            "method": {"name": "block_influence"},
            "calibration": {
                **TEXT,
                "dataset": "file:some text.txt",
                "self_generated": 0.25,
                "repeated": 0.125,
                "column": "body",
                "template": "plain",
            },
        },
        {
            "ratio": 0.25,
            "method": {"name": "drop"},
            "compute": {**COMPUTE, "loading": "blockwise", "quantization": "4bit", "pattern_safe": True},
        },
        {
            "ratio": 0.25,
            "method": {"name": "merge"},
            "calibration": {
                **TEXT,
                "sources": [
                    {"dataset": "file:some text.txt", "share": 0.5},
                    {"dataset": "builtin:code", "share": 0.25, "split": "test"},
                    {"self_generated": True, "share": 0.25},
                ],
                "repeated": 0.25,
            },
        },
    ],
    ids=lambda fields: str(fields["method"]["name"]),
)
def test_it_gives_the_same_specification(
    replaceme: Run, model: Path, text: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    body = {
        "model": {"repo_id": "local/a-model"},
        "calibration": {"dataset": f"file:{text.name}", "self_generated": 0.25, **TEXT},
        "compute": COMPUTE,
        **fields,
    }
    wanted = ResolvedSpec.model_validate(body)
    command, *arguments = shlex.split(as_command(wanted).replace("\\\n", ""))
    for task in ("piqa", "sciq"):  # of which nothing but the names is looked at
        (tmp_path / f"{task}.yaml").write_text(f"task: {task}\n")
    known = {"MODEL_DIR": str(model), "OUT": str(tmp_path / "out"), "TASKS_DIR": str(tmp_path)}
    done = replaceme(*(known.get(one, one) for one in arguments))
    assert (command, done.exit_code) == ("replaceme", 0), done.stderr
    sent = json.loads((tmp_path / "out" / "replaceme.json").read_text())["request"]["spec"]
    expected = wanted.model_dump(mode="json")
    assert sent == expected
