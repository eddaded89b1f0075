"""The demo's own path, end to end, on a tiny model in place of the real one."""

import io
import json
import os
import re
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks import demo, smollm2
from replaceme_core.report.figures import size
from tests.fixtures.models.tiny import BLOCKS, save_tiny

SMALLER: dict[str, object] = {
    **demo.REQUEST,
    "calibration": {"dataset": "builtin:pydoc-topics", "samples": 16, "max_length": 128, "self_generated": 0.25},
    "evaluation": {"samples": 2},
    "method": {"name": "least_squares", "replays": 1},
}


CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def test_the_demo_says_what_happened(tmp_path: Path) -> None:
    save_tiny(tmp_path / "hub" / smollm2.REPO_ID, chat_template=CHAT)
    before = psutil.Process().children(recursive=True)
    console = Console(file=io.StringIO(), width=120, markup=False)
    demo.run(console, data=tmp_path, request=SMALLER, plain={**SMALLER, "method": "drop"})
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert psutil.Process().children(recursive=True) == before

    reports = {
        path.parent: json.loads(path.read_text()) for path in (tmp_path / "hub" / "local").glob("*/replaceme.json")
    }
    [result] = (path for path, found in reports.items() if found["method"] == "least_squares")
    [plain] = (found for found in reports.values() if found["method"] == "drop")
    report = reports[result]
    assert json.loads((result / "config.json").read_text())["num_hidden_layers"] == BLOCKS - 2
    assert len(report["removed_blocks"]) == 2
    assert f"removed 2 of {BLOCKS} blocks" in shown
    assert f"Output of these lines, run just now: {BLOCKS - 2}" in shown
    for side in ("before", "after"):
        assert f"{report[side]['parameters']:,}" in shown
        assert size(report[side]["bytes"]) in shown
        assert f"{report[side]['perplexity']:,.2f}" in shown
    assert f"{sum(file.stat().st_size for file in result.iterdir()) / 1e6:,.0f} MB" in shown
    assert result.name in shown
    assert len(plain["removed_blocks"]) == 2
    for text, removal in zip(report["texts"], plain["texts"], strict=True):
        assert text["name"] == removal["name"]
        assert f"{text['after']:,.2f}" in shown
        assert f"{removal['ratio']:,.2f}" in shown
    assert re.search(r"succeeded after .+: .*(calibrate|evaluate) \d+ s, .*rest \d+ s", shown)


def test_the_model_is_unpacked_once_and_whole(tmp_path: Path) -> None:
    before = {name for name in os.environ if name.startswith("HF_")}
    directory = smollm2.provide(tmp_path / "org" / "model")
    assert {name for name in os.environ if name.startswith("HF_")} == before, "later processes would be offline"
    times = {file.name: file.stat().st_mtime_ns for file in directory.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(times)
    assert {"tokenizer_config.json", "chat_template.jinja", "README.md"} <= set(times)
    assert smollm2.provide(directory) == directory
    assert {file.name: file.stat().st_mtime_ns for file in directory.iterdir()} == times
    assert [entry.name for entry in directory.parent.iterdir()] == ["model"]
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & set(config)
