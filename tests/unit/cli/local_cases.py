"""How tests start `compress` and `evaluate` around a runner without a model, and what may be there afterwards."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from tests.unit.cli import stub_runner

STUB = Path(stub_runner.__file__)
CONFIG = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 8}
Run = Callable[..., Result]


def environment(mode: str, scratch: Path) -> dict[str, str]:
    ours = {"REPLACEME_RUNNER_COMMAND": json.dumps([sys.executable, str(STUB), mode]), "TMPDIR": str(scratch)}
    return {**{name: value for name, value in os.environ.items() if not name.startswith("REPLACEME_")}, **ours}


def left_over(tmp_path: Path) -> list[str]:
    known = {"a model", "some text.txt", "scratch", "out"}
    return [entry.name for entry in (*tmp_path.iterdir(), *(tmp_path / "scratch").iterdir()) if entry.name not in known]
