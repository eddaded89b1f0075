"""Measurements of models beside each other, for people: one column for each model."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group
from rich.table import Table

from api.cli.output.values import number, shown

NOT_TOLD_APART = "not told apart"
_MEBIBYTE = 2**20


def rate(speed: object, name: str) -> str:
    """The median of the runs and their range, in tokens a second. `speed` is that of a report."""
    found = speed.get(name) if isinstance(speed, Mapping) else None
    if not isinstance(found, Mapping):
        return "-"
    return f"{shown(found.get('median'), 0)} ({shown(found.get('low'), 0)}-{shown(found.get('high'), 0)})"


def memory(speed: object, name: str, *, unit: float = 1.0, digits: int = 0) -> str:
    """A size in `speed`, in units of `unit` bytes."""
    value = number(speed.get(name)) if isinstance(speed, Mapping) else None
    return shown(None if value is None else value / unit, digits)


def models_table(names: Sequence[str], models: Sequence[Mapping[str, object]]) -> Table:
    """One column for each model; rows of a comparison only where there are several. Rows are those of `evaluate`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for key, label, digits in (
        ("perplexity", "perplexity per token", 3),
        ("word_perplexity", "per word", 2),
        ("byte_perplexity", "per byte", 4),
        ("tokens", "over tokens", 0),
    ):
        table.add_row(label, *(shown(one.get(key), digits) for one in models))
    if len(models) > 1:
        table.add_row("times the first", *map(_ratio, models))
    for name, label in (("prefill", "read, tokens per second"), ("decode", "written, tokens per second")):
        table.add_row(label, *(rate(one.get("speed"), name) for one in models))
        if len(models) > 1:
            table.add_row("  against the first", *(_apart(one, name) for one in models))
    table.add_row("parameters", *(shown(one.get("parameters"), 0) for one in models))
    table.add_row("bytes on disk", *(shown(one.get("bytes"), 0) for one in models))
    table.add_row("KV cache, bytes per token", *(memory(one.get("speed"), "cache_bytes_per_token") for one in models))
    table.add_row("peak memory, MiB", *(memory(one.get("speed"), "peak_bytes", unit=_MEBIBYTE) for one in models))
    _add_tasks(table, models)
    table.add_row("dtype", *(str(one.get("dtype", "-")) for one in models))
    return table


def tasks_table(tasks: Sequence[Mapping[str, object]]) -> Table:
    """The accuracies of both models in each task, over `n` questions; rows are those of `replaceme.json`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("accuracy in", overflow="fold")
    for name in ("before", "after", "kept (above chance)"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in tasks:
        sides = (row.get("before"), row.get("after"))
        cells = (_accuracy(side) if isinstance(side, Mapping) else "-" for side in sides)
        label = Group(str(row.get("name")), f"  n = {shown(row.get('samples'), 0)}")
        table.add_row(label, *cells, _kept(row))
    return table


def _add_tasks(table: Table, models: Sequence[Mapping[str, object]]) -> None:
    """The accuracy of each task with its interval, and what is kept of the first model's; else its metrics."""
    found = [tasks if isinstance(tasks, list) else [] for tasks in (one.get("tasks") for one in models)]
    for rows in zip(*found, strict=True):
        name = str(rows[0].get("name"))
        if number(rows[0].get("accuracy")) is None:
            for metric in rows[0].get("metrics", {}):
                table.add_row(f"{name} {metric}", *(_metric(row, metric) for row in rows))
            continue
        table.add_row(f"{name} accuracy (n = {shown(rows[0].get('samples'), 0)})", *(_accuracy(row) for row in rows))
        if len(models) > 1:
            table.add_row("  kept (above chance)", *(_kept(row) for row in rows))


def _metric(row: Mapping[str, object], metric: str) -> str:
    metrics = row.get("metrics")
    score = metrics.get(metric) if isinstance(metrics, Mapping) else None
    return shown(score.get("value") if isinstance(score, Mapping) else None, 4)


def _accuracy(row: Mapping[str, object]) -> str:
    low, high = number(row.get("low")), number(row.get("high"))
    interval = "" if low is None or high is None else f" ({low:.3f}-{high:.3f})"
    return f"{shown(row.get('accuracy'), 3)}{interval}"


def _kept(row: Mapping[str, object]) -> str:
    kept, above = number(row.get("kept")), number(row.get("kept_above_chance"))
    if kept is None:
        return "-"
    return f"{kept:.1%}" + ("" if above is None else f" ({above:.1%})")


def _ratio(one: Mapping[str, object]) -> str:
    """With its confidence interval; "-" for the first model and for other tokens than the first model's."""
    if number(one.get("ratio")) is None:
        return "-"
    return f"{shown(one.get('ratio'), 3)}{interval_of(one)}"


def interval_of(row: Mapping[str, object]) -> str:
    """The 95 percent confidence interval of a ratio; empty where there is none."""
    if number(row.get("ratio_low")) is None:
        return ""
    return f" ({shown(row.get('ratio_low'), 3)}-{shown(row.get('ratio_high'), 3)})"


def _apart(one: Mapping[str, object], name: str) -> str:
    apart = one.get("told_apart")
    if not isinstance(apart, Mapping):
        return "-"
    return "told apart" if apart.get(name) else NOT_TOLD_APART
