"""The demo's own path, end to end, on a tiny model in place of the real one."""

import io
import json
import os
import re
import subprocess
from pathlib import Path

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
    console = Console(file=io.StringIO(), width=120, markup=False)
    demo.run(console, data=tmp_path, request=SMALLER, plain={**SMALLER, "method": "drop"})
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    reports = [json.loads(path.read_text()) for path in (tmp_path / "hub" / "local").glob("*/replaceme.json")]
    [report] = (found for found in reports if found["method"] == "least_squares")
    [plain] = (found for found in reports if found["method"] == "drop")
    assert len(report["removed_blocks"]) == len(plain["removed_blocks"]) == 2
    expected = [f"removed 2 of {BLOCKS} blocks", f"Output of these lines, run just now: {BLOCKS - 2}"]
    for side in (report["before"], report["after"]):
        expected += [f"{side['parameters']:,}", size(side["bytes"]), f"{side['perplexity']:,.2f}"]
    for text, removal in zip(report["texts"], plain["texts"], strict=True):
        expected += [f"{text['after']:,.2f}", f"{removal['ratio']:,.2f}"]
    assert [words for words in expected if words not in shown] == []
    assert re.search(r"succeeded after .+: .*(calibrate|evaluate) \d+ s, .*rest \d+ s", shown)


def test_the_command_that_the_demo_names_can_be_pasted() -> None:
    shown = io.StringIO()
    demo.show_service(Console(file=shown), "http://127.0.0.1:9", job_id="some")
    command = next(line for line in shown.getvalue().splitlines() if " status some " in line).split()[0]
    not_activated = {**os.environ, "PATH": os.defpath}
    assert subprocess.run([command, "--version"], env=not_activated, capture_output=True, check=False).returncode == 0
