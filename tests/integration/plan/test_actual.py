"""What a run takes, beside its plan: memory within 25 %, bytes within 1 %; and what a report says of both."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from replaceme_core.plan.resources import planned_host_bytes
from replaceme_core.request.method import Method
from replaceme_core.runner.messages import PastJob, RunnerRequest, Stage
from tests.fixtures.cli.local import run_here
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import byte_tokenizer, save_tiny

MEMORY, BYTES = 0.25, 0.01
_TOKENS = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": None}


def untied() -> PreTrainedModel:
    """Wide embeddings and a head of its own, in bfloat16: 54 million parameters."""
    config = LlamaConfig(
        vocab_size=24_000,
        hidden_size=512,
        intermediate_size=1400,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        **_TOKENS,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]


def tied() -> PreTrainedModel:
    """Tied, in float32, with biases: 39 million parameters, in few blocks, since each takes time for each token."""
    config = GPT2Config(vocab_size=4000, n_embd=768, n_layer=5, n_head=8, n_positions=256, **_TOKENS)
    return GPT2LMHeadModel(config)


SIZE = ("--samples", "8", "--max-length", "128", "--threads", "1", "--device", "cpu", "--dtype", "float32")
TEXT = ("--calibration", "builtin:general", "--self-generated", "0")


def check_plan(report: dict[str, object], model: Path) -> None:
    plan = report["plan"]
    assert isinstance(plan, dict)
    assert plan["expected_weight_bytes"] == pytest.approx(plan["weight_bytes"], rel=BYTES)
    assert {stage["name"] for stage in plan["stages"]} >= {"calibrate", "solve", "fold", "save"}
    expected, actual = (max(stage[name] for stage in plan["stages"]) for name in ("expected_peak_bytes", "peak_bytes"))
    assert expected == pytest.approx(actual, rel=MEMORY), plan["stages"]
    sent = {
        "spec": report["spec"],
        "model_directory": str(model),
        "calibration_paths": [None],
        "output_directory": "out",
    }
    limited_by = planned_host_bytes(RunnerRequest.model_validate(sent, strict=False))
    assert actual < (1 + MEMORY) * limited_by, "a limit of twice that leaves room"
    assert limited_by < 4 * actual
    assert all(stage["expected_seconds"] > 0 for stage in plan["stages"])


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (untied, ("--ratio", "0.3", "--method", "least_squares", "--no-evaluate")),
        (untied, ("--drop", "5,6", "--method", "refit", "--no-evaluate")),
        (tied, ("--ratio", "0.3", "--method", "drop", "--evaluation-samples", "2")),
        (tied, ("--drop", "3", "--method", "drop", "--no-evaluate", "--loading", "blockwise")),
    ],
    ids=["sums", "refit", "evaluation", "blockwise"],
)
def test_random_models(
    make: Callable[[], PreTrainedModel], options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run in float32 on one thread, on 1,024 tokens of calibration, in a process of its own."""
    torch.manual_seed(0)
    model = tmp_path / "model"
    make().save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    done = run_here(monkeypatch, tmp_path, "compress", model, "--out", "out", *SIZE, *TEXT, *options)
    assert done.exit_code == 0, done.stderr
    check_plan(json.loads((tmp_path / "out" / "replaceme.json").read_text()), model)


EARLIER = PastJob(method=Method.LEAST_SQUARES, inputs="", stages=dict.fromkeys(Stage, (10.0, 30.0)))


@pytest.mark.usefixtures("brief_reports")
def test_the_plan_is_beside_what_the_run_took(tmp_path: Path) -> None:
    """And the worker learns at once what is expected, and what the model says without earlier jobs."""
    one = request(save_tiny(tmp_path / "model"), drop=[3])
    finished, recorder, _ = run(one.model_copy(update={"history": (EARLIER,)}))
    plan, stages = finished.report["plan"], finished.report["stages"]
    assert isinstance(plan, dict)
    assert isinstance(stages, list)
    assert plan["basis"] == "measured"
    assert plan["expected_weight_bytes"] == pytest.approx(plan["weight_bytes"], rel=0.05)  # half of it is the header
    for planned, actual in zip(plan["stages"], stages, strict=True):
        assert planned.keys() == {"name", "expected_seconds", "seconds", "expected_peak_bytes", "peak_bytes"}
        assert {name: planned[name] for name in ("name", "seconds", "peak_bytes")} == actual
    modelled = {stage: value for stage, name, value, *_ in recorder.metrics if name == "modelled_seconds"}
    expected = {stage["name"]: stage["expected_seconds"] for stage in plan["stages"]}
    assert set(modelled) == set(expected)
    assert all(2 * seconds < expected[stage] < 4 * seconds for stage, seconds in modelled.items())
    assert {stage: recorder.expected[Stage(stage)] for stage in expected} == expected
