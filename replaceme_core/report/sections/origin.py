"""What the result was made from and with: enough to make it again."""

import json

from replaceme_core.report.forms import digits
from replaceme_core.report.parts import Cell, Code, Facts, Part, Section, Table
from replaceme_core.report.reading import Report, Step, pointer

_MOST_SPEC = 20_000  # characters


def origin(report: Report) -> Section:
    """Model, text, software, machine, checksums, specification."""
    parts: list[Part] = [Facts(caption="What it was made from", rows=_facts(report))]
    parts += _texts(report)
    parts += [
        *_named(report, "versions", caption="Versions", header=("Software", "Version")),
        *_named(report, "numerics", caption="What decides the rounding", header=("Setting", "Value")),
        *_checksums(report),
    ]
    spec = json.dumps(report.at("spec"), indent=2, ensure_ascii=False)
    if report.at("spec") is not None and len(spec) <= _MOST_SPEC:
        parts.append(
            Code(caption="Specification: sent again, it makes the same model", text=spec, place=pointer(["spec"]))
        )
    return Section(id="origin", title="Where it comes from", parts=parts)


def _facts(report: Report) -> list[tuple[str, Cell]]:
    known: list[tuple[str, tuple[Step, ...]]] = [
        ("Hub", ("hub",)),
        ("Model", ("spec", "model", "repo_id")),
        ("Commit of the model", ("spec", "model", "revision")),
        ("Job", ("job_id",)),
        ("Version of ReplaceMe", ("code", "version")),
        ("Commit of ReplaceMe", ("code", "commit")),
        ("Digest of its sources", ("code", "digest")),
        ("Device", ("device", "type")),
        ("Hardware", ("device", "hardware")),
        ("Instructions", ("device", "instructions")),
        ("System", ("device", "system")),
        ("Key of the statistics", ("statistics_key",)),
    ]
    rows: list[tuple[str, Cell]] = [(label, (report.words(*path),)) for label, path in known if report.text(*path)]
    text = ("spec", "calibration")
    if report.number(*text, "samples") is not None:
        amount = (
            report.figure(*text, "samples", as_=digits(0)),
            " sequences of ",
            report.figure(*text, "max_length", as_=digits(0)),
            " tokens, seed ",
            report.figure(*text, "seed"),
        )
        rows.append(("Calibration", amount))
    return rows


def _texts(report: Report) -> list[Part]:
    rows: list[list[Cell]] = [
        [
            (report.words("calibration_texts", row, "name"),),
            (report.words("calibration_texts", row, "revision"),),
        ]
        for row in report.rows("calibration_texts")
    ]
    if not rows:
        return []
    return [Table(caption="Calibration texts", header=("Text", "Commit"), rows=rows, wordy=frozenset({1}))]


def _named(report: Report, name: str, *, caption: str, header: tuple[str, str]) -> list[Part]:
    rows: list[list[Cell]] = [
        [(key.replace("_", " "),), (report.words(name, key),)] for key in report.names(name) if report.text(name, key)
    ]
    return [Table(caption=caption, header=header, rows=rows, wordy=frozenset({1}))] if rows else []


def _checksums(report: Report) -> list[Part]:
    groups: list[tuple[str, tuple[Step, ...]]] = [
        ("original", ("model",)),
        *(("text", ("calibration_texts", row, "files")) for row in report.rows("calibration_texts")),
        ("tokens", ("tokens",)),
        ("result", ("result",)),
    ]
    rows: list[list[Cell]] = [
        [(key,), (kind,), (report.words(*path, key),)]
        for kind, path in groups
        for key in report.names(*path)
        if report.text(*path, key)
    ]
    if not rows:
        return []
    return [Table(caption="Checksums (SHA-256)", header=("File", "Of", "SHA-256"), rows=rows, wordy=frozenset({1, 2}))]
