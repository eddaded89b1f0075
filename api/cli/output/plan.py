"""A plan, for people."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.client.responses.plan import Estimate, Plan
from replaceme_core.report.figures import time_about, time_range
from replaceme_core.wording import counted


def print_plan(console: Console, plan: Plan) -> None:
    """The facts, a row for each stage, then warnings and refusals, one line each."""
    console.print(_facts(plan))
    if plan.estimate is not None:
        console.print()
        console.print(_stages(plan.estimate))
    for notice, name, style in (
        *((one, "warning", "yellow") for one in plan.warnings),
        *((one, "refused", "red") for one in plan.refusals),
    ):
        console.print(Text(f"{name}: {notice.message}", style=style), soft_wrap=True)


def describe_bytes(count: int) -> str:
    """
    >>> [describe_bytes(count) for count in (999, 45_300_000, 141_107_412_992)]
    ['999 B', '45.3 MB', '141 GB']
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def _facts(plan: Plan) -> Table:
    model, found = plan.model, plan.estimate
    family = "unknown" if model.family is None else model.family
    rows = {
        "model": f"{model.repo_id} {model.revision or ''}".strip(),
        "family": f"{family}, {'supported' if model.supported else 'not supported'}",
        "methods": ", ".join(model.methods),
    }
    if found is not None:
        before, after = found.parameters["before"], found.parameters["after"]
        rows |= {
            "removes": f"{'at most ' if found.trials else ''}{found.blocks['removed']} blocks",
            "trials": _trials(found),
            "parameters": f"{before:,} -> {after:,}",
            "method": f"{found.method}, {found.samples} x {found.max_length} tokens, {found.dtype}, {found.loading}",
            "download": describe_bytes(found.bytes["download"]),
            "result": describe_bytes(found.bytes["write"]),
            "disk": describe_bytes(found.bytes["disk"]),
            "memory": describe_bytes(found.memory["host_bytes"]),
            "GPU memory": describe_bytes(found.memory["gpu_bytes"]) if found.memory["gpu_bytes"] else "",
            "time": _time(found),
        }
    if plan.worker is not None:
        kind = plan.worker.route or f"any (estimated for {plan.worker.estimated_for})"
        alive = ", alive" if plan.worker.alive else ", none alive"
        rows["worker"] = f"{kind}{alive}"
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _time(found: Estimate) -> str:
    low, high = (float(found.time.get(name, found.time["seconds"])) for name in ("low_seconds", "high_seconds"))
    jobs = int(found.time["jobs"])
    if found.time["basis"] == "measured":
        return f"{time_range(low, high)}, by {counted(jobs, 'earlier jobs')}"
    return f"{time_range(low, high)}, by a rough model: no earlier job has been measured"


def _trials(found: Estimate) -> str:
    """Empty for a job that tries one depth."""
    if found.trials is None:
        return ""
    return f"at most {found.trials.at_most}, {time_about(found.trials.seconds)} for all"


def _stages(found: Estimate) -> Table:
    gpu = any(one.gpu_bytes for one in found.stages)
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for name in ("time", "memory", *(["GPU memory"] if gpu else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.stages:
        sizes = [one.host_bytes, *([one.gpu_bytes] if gpu else [])]
        shown = ("-" if size is None else describe_bytes(size) for size in sizes)
        table.add_row(one.stage, time_about(one.seconds), *shown)
    return table
