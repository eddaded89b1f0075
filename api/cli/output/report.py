"""A report, `replaceme.json`, for people."""

from collections.abc import Mapping

from rich.console import Console

from api.cli.output.answers import print_answers
from api.cli.output.gate import gate_table
from api.cli.output.models import tasks_table
from api.cli.output.tables import before_after_table, candidates_table, texts_table
from api.cli.output.trials import trials_table
from replaceme_core.request.gate import GateResult
from replaceme_core.request.removal import block_ranges


def print_report(console: Console, report: Mapping[str, object]) -> None:
    """What was removed, the candidates, both models side by side, and their answers; what is not there is left out."""
    removed, kept = report.get("removed_blocks"), report.get("kept_blocks")
    if isinstance(removed, list | tuple) and isinstance(kept, list | tuple):
        console.print(f"removed {len(removed)} of {len(removed) + len(kept)} blocks: {block_ranges(removed)}")
    candidates = report.get("candidates")
    if isinstance(candidates, list) and candidates:
        console.print(candidates_table(candidates))
    before, after = report.get("before"), report.get("after")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        console.print(before_after_table(before, after, report.get("speed_changes")))
    texts = report.get("texts")
    if isinstance(texts, list) and texts:
        console.print(texts_table(texts))
    tasks = report.get("tasks")
    if isinstance(tasks, list) and tasks:
        console.print(tasks_table(tasks))
    print_answers(console, report)
    gate = GateResult.in_report(report)
    if gate is not None:
        console.print(gate_table(gate.criteria))
        if gate.trials:
            console.print(trials_table(gate.trials))
