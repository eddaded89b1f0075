"""Tables and lines for people: jobs, events, measurements, candidates."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from api.cli.output.gate import gate_lines
from api.cli.output.models import NOT_TOLD_APART, interval_of, memory, rate
from api.cli.output.times import describe_eta, describe_time
from api.client.models import Job, JobEvent
from replaceme_core.admission.removal import block_ranges
from replaceme_core.calibration_spec import SELF_GENERATED

ID_WIDTH = 36  # a UUID
_STATUS_STYLE = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def jobs_table(jobs: Sequence[Job]) -> Table:
    table = _table("id", "status", "stage", "done", "model", "removes", "created")
    table.columns[0].min_width = ID_WIDTH  # the other commands need all of it, so other columns are truncated first
    for job in jobs:
        table.add_row(
            job.id,
            Text(job.status, style=_STATUS_STYLE.get(job.status, "")),
            job.stage or "",
            f"{job.progress.overall:.0%}",
            _model_of(job),
            _removal_of(job),
            describe_time(job.created_at),
        )
    return table


def job_table(job: Job) -> Table:
    rows: dict[str, str | Text] = {
        "job": job.id,
        "status": Text(job.status, style=_STATUS_STYLE.get(job.status, "")),
        "model": _model_of(job),
        "removes": _removal_of(job),
        "calibration": _calibration_of(job),
        "labels": ", ".join(f"{name}={value}" for name, value in job.labels.items()),
        "workers": job.route or "",
        "attempt": str(job.attempt) if job.attempt else "",
        "created": describe_time(job.created_at),
        "started": describe_time(job.started_at),
        "finished": describe_time(job.finished_at),
    }
    if job.queue is not None and job.queue.position is not None:
        start = describe_time(job.queue.estimated_start_at)
        rows["queue"] = f"number {job.queue.position}" + (f", starts about {start}" if start else "")
    if not job.is_terminal:
        progress = f"{job.progress.overall:.0%} {job.stage or ''} {describe_eta(job.progress.eta_seconds)}"
        rows["progress"] = " ".join(progress.split())
    if job.result is not None:
        rows["result"] = job.result.repo_id
        rows["revision"] = job.result.revision
        rows["removed"] = f"{len(job.result.removed_blocks)} blocks: {block_ranges(job.result.removed_blocks)}"
        rows["kept"] = f"{len(job.result.kept_blocks)} blocks: {block_ranges(job.result.kept_blocks)}"
        rows["warnings"] = Text("\n".join(one.message for one in job.result.warnings), style="yellow")
    if job.gate is not None:
        rows["gate"] = gate_lines(job.gate.criteria)
    if job.error is not None:
        rows["error"] = Text(f"{job.error.code}: {job.error.message}", style="red")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, value if isinstance(value, Text) else Text(value))
    return table


def event_line(event: JobEvent) -> str:
    data = " ".join(f"{name}={value}" for name, value in event.data.items())
    return f"{event.seq:>4}  {describe_time(event.at)}  attempt {event.attempt}  {event.type:<16}  {data}".rstrip()


def before_after_table(
    before: Mapping[str, object], after: Mapping[str, object], speed_changes: object = None
) -> Table:
    """Measurements of the model before and after. A row without values is left out.

    `speed_changes` are those of `replaceme.json`; where they are given, reading and writing have rows of their own.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, label, digits in (
        ("blocks", "blocks", 0),
        ("parameters", "parameters", 0),
        ("bytes", "bytes on disk", 0),
        ("perplexity", "perplexity", 2),
        ("word_perplexity", "  per word", 2),
        ("byte_perplexity", "  per byte", 3),
        ("tokens_per_second", "tokens per second", 0),
    ):
        if key == "tokens_per_second" and speed_changes:
            continue
        old, new = _number(before.get(key)), _number(after.get(key))
        if old is not None or new is not None:
            table.add_row(label, _format(old, digits), _format(new, digits), _change(old, new, key))
    if isinstance(speed_changes, Mapping) and speed_changes:
        _add_speed(table, before.get("speed"), after.get("speed"), speed_changes)
    return table


def _add_speed(table: Table, before: object, after: object, changes: Mapping[str, object]) -> None:
    """Rows for speed and memory. A change that is within the spread of the runs is none."""
    for name, label in (("prefill", "read, tokens per second"), ("decode", "written, tokens per second")):
        ratio = _number(_inside(changes, name, "ratio"))
        apart = _inside(changes, name, "told_apart") is True and ratio is not None
        table.add_row(label, rate(before, name), rate(after, name), f"x {ratio:.2f}" if apart else NOT_TOLD_APART)
    for name, label in (("cache_bytes_per_token", "KV cache, bytes per token"), ("peak_bytes", "peak memory, bytes")):
        old, new = _number(_inside(before, name)), _number(_inside(after, name))
        table.add_row(label, memory(before, name), memory(after, name), _change(old, new, name))


def texts_table(texts: Sequence[Mapping[str, object]]) -> Table:
    """Perplexities on each text, before and after, and how often both models find the same token most likely.

    Rows are those of `replaceme.json`.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("perplexity on")
    for name in ("before", "after", "times", "same first choice"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in texts:
        figures = [_format(_number(row.get(name)), 2) for name in ("before", "after", "ratio")]
        figures[-1] += interval_of(row)
        agreement = _number(row.get("agreement"))
        shown = "-" if agreement is None else f"{agreement:.0%}"
        table.add_row(Text(str(row.get("name"))), *figures, shown)
    return table


def differences_table(differences: Sequence[Mapping[str, object]]) -> Table:
    """Tensors that are not the same in two models, with how many values differ, and by how much."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for name in ("differs in", "values", "at most by", "relative"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in differences:
        differing, values = _number(row.get("differing")), _number(row.get("values"))
        share = "all" if differing is None else f"{_format(differing, 0)} of {_format(values, 0)}"
        sizes = (_number(row.get(name)) for name in ("largest", "relative"))
        table.add_row(
            Text(str(row.get("name"))),
            str(row.get("what")),
            share,
            *("-" if one is None else f"{one:.3g}" for one in sizes),
        )
    return table


def candidates_table(candidates: Sequence[Mapping[str, object]], *, most: int = 8) -> Table:
    """The best candidates, at most `most`, with the chosen one first and marked. Rows are those of `replaceme.json`.

    The cut is chosen by held-out loss among the few candidates with the least residual; the others have no loss. A loss
    with a tilde is an estimate: the candidate was left out before it was evaluated on all held-out tokens.
    Residuals are comparable only if they are measured on the same number of tokens: those on fewer tokens come last.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("blocks", justify="right", no_wrap=True)
    for name in ("distance\nbefore the fit", "residual\nafter the fit", "loss on\nheld-out tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    sources = sources if len(sources := _sources_of(candidates)) > 1 else []
    for name in sources:
        table.add_column(f"on\n{name}", justify="right")
    for row in sorted(candidates, key=_rank)[:most]:
        first, last = row.get("start"), row.get("end")
        table.add_row(
            "->" if row.get("chosen") else "",
            str(first) if first == last else f"{first}-{last}",
            *(_format(_number(row.get(name)), 4) for name in ("distance", "residual")),
            ("~" if row.get("estimated") else "") + _format(_number(row.get("held_out_loss")), 4),
            *(_format(_number(_inside(row, "source_losses", name)), 4) for name in sources),
            style="bold" if row.get("chosen") else "",
        )
    return table


def _sources_of(candidates: Sequence[Mapping[str, object]]) -> list[str]:
    """The names of the sources that candidates were judged on."""
    found = next((losses for row in candidates if (losses := row.get("source_losses"))), None)
    return list(found) if isinstance(found, Mapping) else []


def _rank(row: Mapping[str, object]) -> tuple[bool, float, float, float]:
    loss, residual = (_number(row.get(name)) for name in ("held_out_loss", "residual"))
    last, tokens = math.inf, _number(row.get("tokens")) or 0
    return not row.get("chosen"), last if loss is None else loss, -tokens, last if residual is None else residual


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _format(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _change(old: float | None, new: float | None, key: str) -> str:
    if not old or new is None:
        return ""
    times = key.endswith("perplexity") or key == "tokens_per_second"
    return f"x {new / old:.2f}" if times else f"{new / old - 1:+.1%}"


def _model_of(job: Job) -> str:
    return str(_inside(job.spec, "model", "repo_id") or "")


def _removal_of(job: Job) -> str:
    ratio, drop = _number(job.spec.get("ratio")), job.spec.get("drop")
    if ratio is not None:
        return f"{ratio:.4g} of blocks"
    return f"blocks {block_ranges(drop)}" if isinstance(drop, list) else ""


def _calibration_of(job: Job) -> str:
    """The names of all sources, with the shares that were given."""
    sources = _inside(job.spec, "calibration", "sources")
    if not isinstance(sources, list):
        return str(_inside(job.spec, "calibration", "dataset") or "")
    names = []
    for source in sources:
        share = _number(_inside(source, "share"))
        name = str(_inside(source, "dataset") or SELF_GENERATED)
        names.append(name if share is None else f"{name} {share:.0%}")
    return ", ".join(names)


def _inside(value: object, *path: str) -> object:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
