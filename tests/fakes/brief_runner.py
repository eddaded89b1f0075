"""The real runner, with reports as brief as those of the fixture `brief_reports`: `python brief_runner.py`."""

import sys
from importlib import import_module
from pathlib import Path

BRIEF = (
    ("replaceme_core.report.page", "can_draw", lambda: False),
    ("replaceme_core.report.card", "can_draw", lambda: False),
    ("replaceme_core.engine.evaluation.speed", "RUNS", 1),
    ("replaceme_core.engine.evaluation.speed", "NEW_TOKENS", 4),
    ("replaceme_core.engine.evaluation.compare", "NEW_TOKENS", 4),
)
"""Module, name and value: no plots, as where matplotlib is not installed, one run for speed, answers of few words."""

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # a script imports installed packages and what lies beside it only
    for module, name, value in BRIEF:
        setattr(import_module(module), name, value)
    import_module("worker.runner").run()
