"""What the documents list is what the code has, and their links and the paths that code names lead somewhere."""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from api.http.hosts import FOREIGN_ORIGIN
from api.http.problems import CODES
from benchmarks.harness.checkout import ROOT
from replaceme_core.errors import ReplaceMeError
from replaceme_core.families.layout import FAMILIES
from replaceme_core.ledger.states import EventType
from replaceme_core.request import defaults
from replaceme_core.request.calibration import CalibrationSpec
from replaceme_core.request.fields import BUILTIN_TEXTS
from replaceme_core.request.method import Method
from replaceme_core.runner.messages import Stage
from replaceme_core.settings import Settings

HTTP = ROOT / "docs" / "reference" / "http.md"
PACKAGES = ("api", "worker", "replaceme_core")
_METRIC = re.compile(r"\.metric\(\s*\"(\w+)\"")
_MAPPING = re.compile(r"\{(?:[^{}]|\{[^{}]*\})*\}")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def section(document: Path, heading: str) -> str:
    """The text of the section of level two or three, up to the next heading of its level."""
    marks, text = heading.split()[0], document.read_text(encoding="utf-8")
    (found,) = re.findall(rf"^{re.escape(heading)}$(.*?)(?=^{marks} |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def before_heading(document: Path, heading: str) -> str:
    """The text of `document` up to the heading."""
    return document.read_text(encoding="utf-8").partition(f"\n{heading}\n")[0]


def in_first_column(text: str) -> set[str]:
    """The names in backticks in the first column of all tables."""
    rows = (line.split("|")[1] for line in text.splitlines() if line.startswith("|"))
    return {name for cell in rows for name in re.findall("`([^`]+)`", cell)}


def documented_metrics() -> set[str]:
    """Those of one thing, and those of both models, which are in the page about the report."""
    report = HTTP.parent / "report.md"
    of_both = in_first_column(section(report, "## Measurements"))
    named = {f"{side}.{name}" for side in ("before", "after") for name in of_both}
    return in_first_column(section(HTTP, "## Metrics")) | named


def test_every_metric_is_listed() -> None:
    emitted = {name for path in sources() for name in _METRIC.findall(path.read_text(encoding="utf-8"))}
    assert len(emitted) > 15
    assert emitted <= documented_metrics()


def of_settings() -> set[str]:
    fields = Settings.model_fields.items()
    return {str(field.validation_alias or name).upper().removeprefix("REPLACEME_") for name, field in fields}


@pytest.mark.parametrize(
    ("listed", "present"),
    [
        (section(HTTP, "## Events"), set(EventType)),
        (before_heading(ROOT / "docs/reference/families.md", "## Not supported"), {"model_type", *FAMILIES}),
        ((ROOT / "docs/how-to/get-a-better-model.md").read_text("utf-8"), {"--method", *Method}),
        ((ROOT / "docs/reference/settings.md").read_text("utf-8"), of_settings()),
    ],
    ids=["events", "families", "methods", "settings"],
)
def test_all_are_in_the_first_column(listed: str, present: set[str]) -> None:
    assert in_first_column(listed) == present


def test_every_method_and_stage_is_named() -> None:
    methods, job = section(HTTP, "### Method"), section(HTTP, "## A job")
    assert all(f"`{method}`" in methods for method in Method)
    assert all(f"`{stage}`" in job for stage in Stage)


def test_every_error_code_is_explained() -> None:
    page = (ROOT / "docs" / "reference" / "error-codes.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### `([a-z_]+)`\n(.*?)(?=^##|\Z)", page, flags=re.MULTILINE | re.DOTALL))
    others = {FOREIGN_ORIGIN, "http_error"}
    inner = {"lease_lost", "stale_parent", "host_unknown", "secret_unreadable"}  # of workers, and of deliveries
    raised = {ReplaceMeError.code, *codes(ReplaceMeError)} - inner
    assert sections.keys() == {*raised, *CODES.values(), *others}
    assert all("**What to do.**" in " ".join(text.split()) for text in sections.values())


def codes(base: type[ReplaceMeError]) -> Iterator[str]:
    for error in base.__subclasses__():
        yield error.code
        yield from codes(error)


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in _LINK.findall(document.read_text(encoding="utf-8")):
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def anchors(document: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_recipes_name_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([a-z_]+/[\w./-]+)`", text) if not re.search("NAME|RESOURCE", name)}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_page_on_the_method_has_the_constants_of_the_default() -> None:
    page = (ROOT / "docs" / "explanation" / "method.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", page, flags=re.MULTILINE))
    samples, length = defaults.CPU_CALIBRATION
    assert rows["samples and length on a CPU"].startswith(f"{samples} x {length}; {defaults.CPU_SAMPLES_OF_OPEN_MIX} ")
    samples, length = defaults.ACCELERATOR_CALIBRATION
    assert rows["samples and length on a GPU"] == f"{samples:,} x {length:,}"
    own, general = Fraction(defaults.OWN_SHARE), Fraction(defaults.GENERAL_SHARE)
    assert rows["share of own text, of general text"] == f"{own}, {general}"
    assert rows["repeated passages"].startswith(f"{Fraction(defaults.REPEATED_SHARE)} of")
    assert rows["held out"] == f"1 sequence in {defaults.HELD_OUT_SHARE}"
    assert defaults.PANEL_STEP == 2
    assert rows["panel: of text"] == f"every second of the first {defaults.PANEL_POSITIONS} tokens"
    assert (1e-4, 1e-3, 1e-2, 1e-1, math.inf) == defaults.RIDGES
    assert rows["most runs"].startswith(f"{defaults.MOST_RUNS}, ")
    assert rows["first lap, and maps that rank"].startswith(f"{Fraction(defaults.RACE_PART)} of")
    assert rows["refitted of each number of runs"] == str(defaults.RACING)
    assert rows["ridge of a refit"] == str(defaults.REFIT_RIDGE)
    assert rows["ridge of a norm's weight, and of a map where several experts write"] == str(defaults.FOLD_RIDGE)
    assert defaults.REACH == 0.5
    assert "to half of those" in rows["blocks that change"]


def test_documents_that_code_names_exist() -> None:
    for path in sources():
        for name in re.findall(r"docs/[\w./-]*\w", path.read_text(encoding="utf-8")):
            assert list(ROOT.glob(f"{name}*")), f"{path.relative_to(ROOT)} names {name}"


def test_no_example_names_more_samples_than_its_built_in_text_has() -> None:
    page = (ROOT / "docs" / "reference" / "built-in-texts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.*?)` .*\| (.*) \|$", page, flags=re.MULTILINE)
    tokens = {name: int(last.replace(",", "")) for name, last in rows}
    assert tokens.keys() == set(BUILTIN_TEXTS)
    _, length = defaults.CPU_CALIBRATION
    texts = [one for document in documents() for one in _MAPPING.findall(document.read_text(encoding="utf-8"))]
    examples = [yaml.safe_load(one) for one in texts if "builtin:" in one and "samples" in one]
    assert len(examples) > 1
    for example in examples:
        calibration = CalibrationSpec.model_validate(example)
        assert calibration.samples is not None
        for source in calibration.mix:
            assert source.share * calibration.samples * length <= tokens.get(source.name, math.inf), example
