"""What a pipeline reads of a finished command: a summary in Markdown, and JUnit XML with a case for each criterion.

The summary is appended to the file that `GITHUB_STEP_SUMMARY` names, where a pipeline sets it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self
from xml.etree import ElementTree

import typer

from api.cli.output.console import print_note
from api.cli.output.jobs import counted_blocks
from api.client.models import Job
from replaceme_core.errors import GateRejected
from replaceme_core.local.compress import Outcome
from replaceme_core.report import view
from replaceme_core.report.figures import duration
from replaceme_core.report.reading import Report, report_of
from replaceme_core.report.view import markdown_table, plain
from replaceme_core.shapes import JobError
from replaceme_core.wording import markdown, markdown_code, printable

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
_SUITE = "replaceme"
_CANCELLED = JobError(code="cancelled", message="the job was cancelled")


def check_junit(path: Path | None) -> Path | None:
    """A callback for `--junit`: refuses before the work begins what could not be written after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{path} is a directory, or is in none that exists")
    return path


Junit = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", callback=check_junit, help="Write JUnit XML here, with one case for each criterion of the gate."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended, after how many `seconds`. `facts` are rows for people, `report` has the gate and both models."""

    title: str
    status: str
    facts: Sequence[tuple[str, str]]
    report: Report
    error: JobError | None
    seconds: float | None

    @classmethod
    def of_job(cls, job: Job) -> Self:
        """A job of the service that has ended."""
        facts = [("job", job.id)]
        if job.result is not None:
            facts += [
                ("result", f"{job.result.repo_id} at {job.result.revision}"),
                ("removed", counted_blocks(job.result.removed_blocks)),
            ]
        took = None
        if job.started_at is not None and job.finished_at is not None:
            took = (job.finished_at - job.started_at).total_seconds()
        return cls(
            title=f"Compression of {Report(job.spec).text('model', 'repo_id') or 'a model'}",
            status=job.status,
            facts=facts,
            report=report_of(job),
            # one that was cancelled has no error of its own, and has judged no gate
            error=_CANCELLED if job.error is None and job.status == "cancelled" else job.error,
            seconds=took,
        )

    @classmethod
    def of_run(cls, outcome: Outcome, *, model: str) -> Self:
        """A run on this machine."""
        facts = [("result", str(outcome.directory)), ("removed", counted_blocks(outcome.removed_blocks))]
        report = Report(outcome.report)
        seconds = [report.number(*base, "seconds") or 0.0 for base in report.places("stages")]
        return cls(
            title=f"Compression of {model}",
            status="succeeded" if outcome.rejection is None else "failed",
            facts=facts,
            report=report,
            error=None if outcome.rejection is None else JobError(code=GateRejected.code, message=outcome.rejection),
            seconds=sum(seconds) or None,
        )

    def as_markdown(self) -> str:
        """A section with the facts, and tables of the criteria and of the trials."""
        lines = [f"## {markdown(self.title)}: {markdown(self.status)}", ""]
        if self.error is not None:
            lines += [f"**{markdown_code(self.error.code)}** {markdown(self.error.message)}", ""]
        lines += ["| | |", "|---|---|"]
        lines += [f"| {name} | {markdown(value)} |" for name, value in self.facts]
        if self.seconds is not None:
            lines.append(f"| time | {duration(self.seconds)} |")
        models, gate, trials = (make(self.report) for make in (view.both_models, view.gate, view.trials))
        lines += [f"\n{markdown_table(table)}" for table in (models, gate, trials) if table is not None]
        if trials is not None:
            lines.append(trials.note)
        return "\n".join(lines) + "\n"

    def as_junit(self) -> str:
        """One case for each criterion; without criteria one for the whole, which has an error where there was one."""
        gate = view.gate(self.report)
        failed = gate.marked if gate is not None else frozenset()
        criteria = [[plain(cell) for cell in row[:3]] for row in gate.rows] if gate is not None else []
        broken = self.error is not None and not failed
        cases = len(criteria) + (broken or not criteria)
        counts = {"tests": str(cases), "failures": str(len(failed)), "errors": str(int(broken)), "skipped": "0"}
        time = {} if self.seconds is None else {"time": f"{self.seconds:.3f}"}
        root = ElementTree.Element("testsuites", counts)
        suite = ElementTree.SubElement(root, "testsuite", {"name": _SUITE, **counts, **time})
        for row, (name, value, limit) in enumerate(criteria):
            case = ElementTree.SubElement(suite, "testcase", {"classname": f"{_SUITE}.gate", "name": f"{name} {limit}"})
            said = f"{name} is {value}, {limit} is wanted"
            if row in failed:
                ElementTree.SubElement(case, "failure", {"message": said, "type": "gate"}).text = said
            else:
                ElementTree.SubElement(case, "system-out").text = said
        if broken or not criteria:
            case = ElementTree.SubElement(suite, "testcase", {"classname": _SUITE, "name": self.title, **time})
            if self.error is not None:
                said = self.error.message
                ElementTree.SubElement(case, "error", {"message": said, "type": self.error.code}).text = said
        ElementTree.indent(root)
        text = ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
        return printable(text, lines=True) + "\n"  # XML cannot have control characters


def write_for_pipeline(ended: Ended, *, junit: Path | None) -> None:
    """Write what the pipeline has asked for. A file that cannot be written is a note: the work is done."""
    summary = os.environ.get(STEP_SUMMARY)
    files = ((junit, "w", ended.as_junit), (Path(summary) if summary else None, "a", ended.as_markdown))
    for path, mode, text in files:
        try:
            if path is not None:
                with path.open(mode, encoding="utf-8") as stream:
                    stream.write(text())
        except OSError as error:
            print_note(f"warning: {path} cannot be written: {error.strerror}")
