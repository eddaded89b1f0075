"""The calls of `replaceme_core.local` with the real runner: the code of the documents, and a model of the Hub."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from api.cli.main import app
from api.cli.output.console import make_console
from api.cli.output.report import print_asked
from benchmarks.harness.checkout import ROOT
from benchmarks.harness.fake_hub.access import READ_TOKEN
from benchmarks.harness.fake_hub.server import FakeHub
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.tasks import load_tasks
from replaceme_core.engine.model.load import load_tokenizer
from replaceme_core.local.compress import compress
from replaceme_core.local.evaluate import evaluate
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.settings import Settings
from tests.fixtures.cli.local import BRIEF_RUNNER, runner
from tests.fixtures.evaluation.local_tasks import offline
from tests.fixtures.models.images import image_request, make_images, saved_tower
from tests.fixtures.models.pipeline import TEXT, request, run
from tests.fixtures.models.tiny import BLOCKS, save_tiny, save_trained

HOW_TO = ROOT / "docs" / "how-to"
CODE = re.findall(
    r"^```python\n(.*?)^```$", (HOW_TO / "from-python-locally.md").read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
)
COMMANDS = re.findall(
    r"^\.venv/bin/((?:python -m |replaceme ).*?[^\\])$",
    (HOW_TO / "reproduce-the-figures.md").read_text("utf-8"),
    re.MULTILINE | re.DOTALL,
)
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OFF = {"enabled": False}
COMPUTE = {"threads": 1, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def test_the_code_of_the_page_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One block after the other: the last one measures what the first one made. The runner has no model."""
    for name, value in runner("good", tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert sum(MODEL in block for block in CODE) == len(CODE)
    (tmp_path / "page.py").write_text("\n".join(CODE).replace(MODEL, str(model)))
    runpy.run_path(str(tmp_path / "page.py"))
    shown = capsys.readouterr().out
    for words in ("removed (2,)", "perplexity_ratio 1.5 passed", "evaluate", "speed on A Processor"):
        assert words in shown
    assert (tmp_path / "small" / "replaceme.json").is_file()
    assert not (tmp_path / "data").exists(), "a model in a directory needs no Hub"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[2])
def test_the_commands_that_reproduce_the_figures_have_these_options(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = command.replace("\\\n", " ").split()
    monkeypatch.setenv("COLUMNS", "200")
    if program == "python":
        monkeypatch.setattr(sys, "argv", [arguments[1], "--help"])
        monkeypatch.delitem(sys.modules, arguments[1], raising=False)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        assert ended.value.code == 0
        shown = capsys.readouterr().out
    else:
        shown = CliRunner().invoke(app, [arguments[0], "--help"]).stdout
    options = [word for word in arguments if word.startswith("--")]
    assert [word for word in options if word not in shown] == []


def test_a_model_and_a_text_of_the_hub(fake_hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """Through the real runner; the result says from which commits it was made."""
    rows = "\n".join(json.dumps({"text": f"Sentence {number} tells of {number} sheep. " * 9}) for number in range(90))
    commit = fake_hub.add_model("acme/tiny", {path.name: path.read_bytes() for path in model.iterdir()}).oid
    data = fake_hub.add_dataset("acme/text", {"train.jsonl": rows.encode(), "test.jsonl": rows.encode()}).oid
    given = {"data": tmp_path / "data", "hub": fake_hub.url, "hub_read_token": READ_TOKEN}
    settings = Settings.model_validate({**given, "runner_command": BRIEF_RUNNER})
    text = {"dataset": "acme/text", "samples": 16, "max_length": 32, "self_generated": 0.0}
    outcome = compress(
        "acme/tiny", ratio=0.34, calibration=text, compute=COMPUTE, out=tmp_path / "out", settings=settings
    )
    assert sorted([*outcome.removed_blocks, *outcome.kept_blocks]) == list(range(BLOCKS))
    assert outcome.before and outcome.after
    assert (outcome.before.blocks, outcome.after.blocks) == (BLOCKS, BLOCKS - 2)
    report = json.loads((tmp_path / "out" / "replaceme.json").read_text())
    assert report == outcome.report
    assert report["hub"] == fake_hub.url
    assert report["spec"]["model"] == {"repo_id": "acme/tiny", "revision": commit}
    assert report["calibration_texts"][0]["revision"] == data
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: acme/tiny" in card
    assert commit in card
    assert READ_TOKEN not in card
    measured = evaluate(["acme/tiny", tmp_path / "out"], text="acme/text", samples=4, max_length=32, settings=settings)
    assert [one.measured.tokens for one in measured.models] == [4 * 31] * 2
    assert [one.revision for one in measured.models] == [commit, None]


def test_the_task_of_the_page_runs(model: Path, tmp_path: Path) -> None:
    """Its files as they stand, in a directory of their own."""
    page = (HOW_TO / "measure-with-tasks.md").read_text("utf-8")
    blocks = re.findall(r"^`tasks/(\S+)` .*?^```\w+\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"`tasks/(capitals\.jsonl)` .*?^```json\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    for name, content in blocks:
        (tmp_path / name).write_text(content, "utf-8")
    with offline(tmp_path / "cache"):
        loaded = load_tasks(["capitals"], directory=str(tmp_path), limit=None, few_shot=None)
        assert loaded is not None
        (task,) = loaded.run(AutoModelForCausalLM.from_pretrained(model), load_tokenizer(model), DenseResults())
    assert (task.name, task.samples, task.chance) == ("capitals", 3, pytest.approx(1 / 3))


def test_models_are_asked_beside_each_other(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the real runner: the answers are those of the library, prompt by prompt."""
    other = save_tiny(tmp_path / "other", num_hidden_layers=3)
    prompts = ("Why\x1b[2J?", "What?")
    words = ["ask", str(model), *prompts, "--beside", str(other), "--tokens", "5", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["answers"]
    expected = [(str(path), text) for text in prompts for path in (model, other)]
    assert [(one["model"], one["prompt"]) for one in found] == expected
    tokenizer, live = load_tokenizer(model), AutoModelForCausalLM.from_pretrained(model)
    ids = tokenizer("What?", return_tensors="pt")["input_ids"]
    new = live.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert found[2]["text"] == tokenizer.decode(new, skip_special_tokens=True).strip()
    print_asked(make_console(stderr=False), [(one["prompt"], one["model"], one["text"]) for one in found])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.count("Why") == 1 and shown.count(f"  {other}") == 2
    assert CliRunner().invoke(app, ["ask", str(tmp_path), "Why?"]).exit_code == 2


def test_a_result_is_healed_without_removing_anything_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real runner, with the original and the text in files, and another text to train on.

    The result was made block by block, which no training could be.
    """
    original = save_trained(tmp_path / "original", TEXT, steps=100)
    healed, text = tmp_path / "healed", tmp_path / "text.txt"
    (other := tmp_path / "other.txt").write_text(TEXT[len(TEXT) // 2 :] + TEXT, encoding="utf-8")
    calibration = {"dataset": "file:text.txt", "samples": 64, "max_length": 32}
    compute = {**COMPUTE, "loading": "blockwise"}
    strengths = {"name": "least_squares", "structure": "diagonal", "ridge": 0.5}
    method = {**strengths, "groups": 2}
    asked = request(original, calibration=calibration, method=method, compute=compute, evaluation=OFF)
    before, _, small = run(asked)
    assert before.report["spec"]["compute"]["loading"] == "blockwise"  # type: ignore[index]
    options = ["--out", healed, "--teacher", original, "--text", text, "--heal-tokens", "6400", "--heal-dataset", other]
    monkeypatch.setenv("REPLACEME_RUNNER_COMMAND", json.dumps(BRIEF_RUNNER))
    words = ["heal", small, *options, "--heal-learning-rate", "0.003", "--json"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["healing"]["is_kept"] is True
    assert shown["healing"]["tokens"] == 6400
    assert shown["removed_blocks"] == list(before.removed_blocks)
    report = json.loads((healed / "replaceme.json").read_text())
    assert [one["name"] for one in report["calibration_texts"]] == ["file:text.txt", "file:other.txt"]
    assert "were trained afterwards" in (healed / "README.md").read_text()
    recorded = CompressionSpec.model_validate(report["spec"])  # as it is read to be made again
    assert list(recorded.drop or ()) == before.removed_blocks
    assert recorded.method.model_dump(mode="json").items() >= {**strengths, "groups": 1}.items()
    again = ["heal", healed, "--out", tmp_path / "twice", *options[2:]]
    refused = CliRunner().invoke(app, [str(word) for word in again])
    assert refused.exit_code == 2
    assert "was trained already" in refused.stderr


@pytest.mark.usefixtures("brief_reports")
def test_a_result_of_a_model_of_images_is_not_healed(tmp_path: Path) -> None:
    source, images = saved_tower(tmp_path / "original", "vit"), make_images(tmp_path / "images", 40)
    _, _, small = run(image_request(source, images, drop=[2, 3], method={"name": "drop"}))
    words = ["heal", small, "--out", tmp_path / "healed", "--teacher", source, "--heal-tokens", "6400"]
    refused = CliRunner().invoke(app, [str(word) for word in words])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "error: healing is for language models; leave heal out\n"
    assert not (tmp_path / "healed").exists()
