"""Tables and lines about jobs, plans, metrics, workers and webhooks, for people. Each fits 80 columns.

What another command needs, such as an id, has a line or a column that is never cut.
"""

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from api.cli.output.console import describe_eta, describe_time, make_console, print_json
from api.cli.output.report import print_gate, print_tables
from api.client.models import Job, JobEvent
from replaceme_core.report.figures import size, time_range
from replaceme_core.report.reading import Report, report_of
from replaceme_core.report.view import both_models, wanted_removal, wanted_text
from replaceme_core.request.removal import block_ranges
from replaceme_core.shapes import Delivery, Estimate, Metric, Plan, Webhook, Worker
from replaceme_core.wording import counted

_STATUS_STYLE = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}
_STATE_STYLE = {"delivered": "green", "failed": "red", "pending": "cyan"}


def list_table(headings: Sequence[RenderableType], rows: Iterable[Sequence[RenderableType]]) -> Table:
    """A row for each item. The first column has the id, which other commands need: it is folded, and never cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, overflow="fold" if number == 0 else "ellipsis", no_wrap=number > 0)
    for row in rows:
        table.add_row(*row)
    return table


def jobs_table(jobs: Sequence[Job]) -> Table:
    """Two lines for each job: the first begins with the id, the second says what the job is."""

    def row(job: Job) -> tuple[RenderableType, ...]:
        spec = Report(job.spec)
        what = ", ".join(filter(None, (spec.text("model", "repo_id"), wanted_removal(spec))))
        status = Text(job.status, style=_STATUS_STYLE.get(job.status, ""))
        return (
            Group(job.id, f"  {what}"),
            status if job.is_terminal else Group(status, job.stage or ""),
            f"{job.progress.overall:.0%}",
            Group(*describe_time(job.created_at).split()),
        )

    return list_table((Group("id", "model and what goes"), Group("status", "stage"), "done", "created"), map(row, jobs))


def job_table(job: Job) -> Table:
    spec = Report(job.spec)
    rows: dict[str, RenderableType] = {
        "job": job.id,
        "status": Text(job.status, style=_STATUS_STYLE.get(job.status, "")),
        "model": spec.text("model", "repo_id"),
        "removes": wanted_removal(spec),
        "calibration": wanted_text(spec),
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
        rows["removed"] = counted_blocks(job.result.removed_blocks)
        rows["kept"] = counted_blocks(job.result.kept_blocks)
        if job.result.warnings:
            rows["warnings"] = Group(*(Text(one.message, style="yellow") for one in job.result.warnings))
    if job.error is not None:
        rows["error"] = Text(f"{job.error.code}: {job.error.message}", style="red")
    return _facts_table(rows)


def print_job(job: Job, *, as_json: bool) -> None:
    """Print a job on standard output, with the summary and the gate of its result, or as JSON."""
    if as_json:
        print_json(job.model_dump(mode="json"))
        return
    console = make_console(stderr=False)
    console.print(job_table(job))
    report = report_of(job)
    print_tables(console, both_models(report))
    print_gate(console, report)


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
    def row(worker: Worker) -> tuple[RenderableType, ...]:
        state = "lost" if not worker.alive else "busy" if worker.busy else "idle"
        shown = Text(state, style={"lost": "red", "busy": "cyan"}.get(state, "green"))
        return worker.name, " ".join(worker.kinds), worker.device, shown, describe_time(worker.heartbeat_at)

    return list_table(("name", "kinds", "device", "state", "heartbeat"), map(row, workers))


def counted_blocks(numbers: Sequence[int]) -> str:
    return f"{counted(len(numbers), 'blocks')}: {block_ranges(numbers)}"


def webhooks_table(webhooks: Sequence[Webhook]) -> Table:
    return list_table(
        (Group("id", "url"), "enabled", "events"),
        ((Group(one.id, f"  {one.url}"), _enabled(one), Group(*one.events)) for one in webhooks),
    )


def webhook_table(webhook: Webhook) -> Table:
    rows = {
        "webhook": webhook.id,
        "url": webhook.url,
        "enabled": _enabled(webhook),
        "events": ", ".join(webhook.events),
        "labels": ", ".join(f"{name}={value}" for name, value in webhook.labels.items()),
        "payload": webhook.payload,
        "job": webhook.job_id or "",
        "signed by": webhook.signed_by or "",
        "key": webhook.key_id or "",
        "old secret": describe_time(webhook.previous_secret_expires_at),
        "created": describe_time(webhook.created_at),
    }
    return _facts_table(rows)


def deliveries_table(deliveries: Sequence[Delivery]) -> Table:
    """Two lines for each message; `last` is the outcome of the last try."""

    def row(delivery: Delivery) -> tuple[RenderableType, ...]:
        last = delivery.tries[-1] if delivery.tries else None
        state = Text(delivery.state, style=_STATE_STYLE.get(delivery.state, ""))
        at = "" if delivery.next_try_at is None else f"{delivery.next_try_at.astimezone():%m-%d %H:%M}"
        outcome = "" if last is None else str(last.status or last.error)
        tries = Group(str(len(delivery.tries)), outcome)
        return Group(delivery.id, f"  {delivery.type}"), Group(state, at), tries

    return list_table(
        (Group("message", "type"), Group("state", "next try"), Group("tries", "last")), map(row, deliveries)
    )


def _facts_table(rows: Mapping[str, RenderableType]) -> Table:
    """A row for each fact that there is."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _enabled(webhook: Webhook) -> str:
    return "yes" if webhook.enabled else f"no, by {webhook.disabled_by}"


def print_plan(console: Console, plan: Plan) -> None:
    """The facts, a row for each stage, then warnings and refusals, one line each."""
    console.print(_facts(plan))
    if plan.estimate is not None:
        console.print()
        console.print(_stages(plan.estimate))
    for name, style, notices in (("warning", "yellow", plan.warnings), ("refused", "red", plan.refusals)):
        for one in notices:
            console.print(Text(f"{name}: {one.message}", style=style), soft_wrap=True)


def _facts(plan: Plan) -> Table:
    model, found = plan.model, plan.estimate
    family = "unknown" if model.family is None else model.family
    rows = {
        "model": f"{model.repo_id} {model.revision or ''}".strip(),
        "family": f"{family}, {'supported' if model.supported else 'not supported'}",
        "methods": ", ".join(model.methods),
    }
    if found is not None:
        trials = found.trials
        rows |= {
            "removes": f"{'at most ' if trials else ''}{found.blocks.removed} blocks",
            "trials": f"at most {trials.at_most}, {time_range(trials.seconds)} for all" if trials else "",
            "parameters": f"{found.parameters.before:,} -> {found.parameters.after:,}",
            "method": f"{found.method}, {found.samples} x {found.max_length} tokens, {found.dtype}, {found.loading}",
            "download": size(found.bytes.download),
            "result": size(found.bytes.write),
            "disk": size(found.bytes.disk),
            "memory": size(found.memory.host_bytes),
            "GPU memory": size(found.memory.gpu_bytes) if found.memory.gpu_bytes else "",
            "time": _time(found),
        }
    if plan.worker is not None:
        kind = plan.worker.route or f"any (estimated for {plan.worker.estimated_for})"
        alive = ", alive" if plan.worker.alive else ", none alive"
        rows["worker"] = f"{kind}{alive}"
    return _facts_table(rows)


def _time(found: Estimate) -> str:
    expected = time_range(found.time.low_seconds, found.time.high_seconds)
    if found.time.basis == "measured":
        return f"{expected}, by {counted(found.time.jobs, 'jobs')} before"
    return f"{expected}, by a rough model: no earlier job has been measured"


def _stages(found: Estimate) -> Table:
    gpu = any(one.gpu_bytes for one in found.stages)
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for name in ("time", "memory", *(["GPU memory"] if gpu else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found.stages:
        sizes = [one.host_bytes, *([one.gpu_bytes] if gpu else [])]
        table.add_row(one.stage, time_range(one.seconds), *map(size, sizes))
    return table
