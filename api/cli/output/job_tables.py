"""Tables and lines about jobs, their metrics and workers, for people. Each fits 80 columns.

What another command needs, such as an id, has a line or a column that is never cut.
"""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from api.cli.output.console import make_console, print_json
from api.cli.output.gate import gate_lines
from api.cli.output.tables import before_after_table
from api.cli.output.times import describe_eta, describe_time
from api.cli.output.trials import trial_lines
from api.cli.output.values import inside, number
from api.client.models import Job, JobEvent, Metric, Worker
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.removal import block_ranges
from replaceme_core.wording import counted

_STATUS_STYLE = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def jobs_table(jobs: Sequence[Job]) -> Table:
    """Two lines for each job: the first begins with the id, the second says what the job is."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(Group("id", "model and what goes"), overflow="fold")
    for name in (Group("status", "stage"), "done", "created"):
        table.add_column(name, no_wrap=True)
    for job in jobs:
        what = ", ".join(filter(None, (_model_of(job), _removal_of(job))))
        status = Text(job.status, style=_STATUS_STYLE.get(job.status, ""))
        table.add_row(
            Group(job.id, f"  {what}"),
            status if job.is_terminal else Group(status, job.stage or ""),
            f"{job.progress.overall:.0%}",
            Group(*describe_time(job.created_at).split()),
        )
    return table


def job_table(job: Job) -> Table:
    rows: dict[str, str | Text | list[str] | list[Text]] = {
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
        "retry of": job.retry_of or "",
        "retried as": job.retried_as or "",
    }
    if job.queue is not None and job.queue.position is not None:
        start = describe_time(job.queue.estimated_start_at)
        rows["queue"] = f"number {job.queue.position}" + (f", starts about {start}" if start else "")
    if not job.is_terminal:
        left = describe_eta(job.progress.eta_seconds, job.progress.eta_error_seconds)
        progress = f"{job.progress.overall:.0%} {job.stage or ''} {left}"
        rows["progress"] = " ".join(progress.split())
    if job.result is not None:
        rows["result"] = job.result.repo_id
        rows["revision"] = job.result.revision
        rows["removed"] = _blocks(job.result.removed_blocks)
        rows["kept"] = _blocks(job.result.kept_blocks)
        rows["warnings"] = [Text(one.message, style="yellow") for one in job.result.warnings]
    if job.gate is not None:
        rows["gate"] = gate_lines(job.gate.criteria)
        rows["trials"] = trial_lines(job.gate.trials)
    if job.error is not None:
        rows["error"] = Text(f"{job.error.code}: {job.error.message}", style="red")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, Group(*value) if isinstance(value, list) else value)
    return table


def print_job(job: Job, *, as_json: bool) -> None:
    """Print a job on standard output, with the summary of its result, or as JSON."""
    if as_json:
        print_json(job.model_dump(mode="json"))
        return
    console = make_console(stderr=False)
    console.print(job_table(job))
    if job.summary is not None:
        sides = ({name: getattr(change, side) for name, change in job.summary} for side in ("before", "after"))
        console.print(before_after_table(*sides))


def event_line(event: JobEvent) -> str:
    data = " ".join(f"{name}={value}" for name, value in event.data.items())
    return f"{event.seq:>4}  {describe_time(event.at)}  attempt {event.attempt}  {event.type:<16}  {data}".rstrip()


def metrics_table(metrics: Sequence[Metric]) -> Table:
    """A row for each value; `of` is the cut or the block that it belongs to."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "metric"):
        table.add_column(name, no_wrap=True)
    table.add_column("of", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for metric in metrics:
        of = metric.candidate or ("" if metric.block is None else f"block {metric.block}")
        table.add_row(metric.stage, metric.name, of, f"{metric.value:,.6g}", metric.unit)
    return table


def workers_table(workers: Sequence[Worker]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", overflow="fold")
    for name in ("kinds", "device", "state", "heartbeat"):
        table.add_column(name, no_wrap=name != "device", overflow="fold")
    for worker in workers:
        state = "lost" if not worker.alive else "busy" if worker.busy else "idle"
        style = {"lost": "red", "busy": "cyan"}.get(state, "green")
        table.add_row(
            worker.name,
            " ".join(worker.kinds),
            worker.device,
            Text(state, style=style),
            describe_time(worker.heartbeat_at),
        )
    return table


def _model_of(job: Job) -> str:
    return str(inside(job.spec, "model", "repo_id") or "")


def _removal_of(job: Job) -> str:
    ratio, drop = job.spec.get("ratio"), job.spec.get("drop")
    fixed, most = number(ratio), number(inside(ratio, "max"))
    if fixed is not None:
        return f"{fixed:.4g} of blocks"
    if most is not None:
        return f"at most {most:.4g} of blocks"
    return f"blocks {block_ranges(drop)}" if isinstance(drop, list) else ""


def _calibration_of(job: Job) -> str:
    """The names of all sources, with the shares that were given."""
    sources = inside(job.spec, "calibration", "sources")
    if not isinstance(sources, list):
        return str(inside(job.spec, "calibration", "dataset") or "")
    names = []
    for source in sources:
        share = number(inside(source, "share"))
        name = str(inside(source, "dataset") or SELF_GENERATED)
        names.append(name if share is None else f"{name} {share:.0%}")
    return ", ".join(names)


def _blocks(numbers: Sequence[int]) -> str:
    return f"{counted(len(numbers), 'blocks')}: {block_ranges(numbers)}"
