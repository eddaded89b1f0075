"""Lines of the log, as a process writes them: every logger, both forms."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from replaceme_core.wording import printable
from tests.fixtures.hostile.texts import TEXTS

PROGRAM = """
import logging, sys, warnings
import structlog
from replaceme_core import telemetry
from replaceme_core.telemetry import LogFormat
from replaceme_core.telemetry import Origin, bound
telemetry.configure_logs(LogFormat(sys.argv[1]), service="tests", file=sys.argv[2] if len(sys.argv) > 2 else None)
EXTRA = {"outcome": "failed", "color_message": "\x1b[36mstandard"}
with bound(Origin(request_id="r-1"), job_id="j-1", attempt=2):
    structlog.get_logger("a").info("native", number=7)
    logging.getLogger("b").warning("standard %s", 'with "quotes" and\\na break', extra=EXTRA)
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger("c").exception("it broke")
logging.getLogger("httpx2").info("GET https://presigned.example/?signature=secret")
logging.getLogger("b").debug("not shown")
warnings.warn("careful")
"""


FOREIGN = """
import json, logging, sys
import structlog
from replaceme_core import telemetry
from replaceme_core.telemetry import LogFormat
telemetry.configure_logs(LogFormat(sys.argv[1]), service="tests")
for text in json.loads(sys.argv[2]):
    structlog.get_logger("a").warning(text, value=text, inside=[text], error=ValueError(text))
    logging.getLogger("b").warning("standard %s", text, extra={"outcome": text, "lines": text})
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("c").exception("it broke")
        structlog.get_logger("d").exception("it broke")
"""


def lines(*arguments: str, program: str = PROGRAM) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=True)
    assert done.stdout == b""
    return done.stderr.decode().removesuffix("\n").split("\n")


def test_every_line_is_an_object_with_the_ids() -> None:
    native, standard, broken, warning = map(json.loads, lines("json"))
    for line in (native, standard, broken):
        assert {name: line[name] for name in ("request_id", "job_id", "attempt", "service")} == {
            "request_id": "r-1",
            "job_id": "j-1",
            "attempt": 2,
            "service": "tests",
        }
        assert line["timestamp"].endswith("Z")
    assert (native["event"], native["number"], native["level"]) == ("native", 7, "info")
    assert standard["event"] == 'standard with "quotes" and\na break'
    assert (standard["level"], standard["logger"], standard["outcome"]) == ("warning", "b", "failed")
    assert broken["exception"].splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "careful" in warning["event"]
    assert "request_id" not in warning


def test_as_text_for_people() -> None:
    shown = lines("text")
    assert "native" in shown[0]
    assert not any("color_message" in line for line in shown)
    assert "number=7" in shown[0] and "request_id=r-1" in shown[0]
    assert "  ZeroDivisionError: division by zero" in shown
    assert not any(line.startswith("{") or "\x1b" in line for line in shown)


@pytest.mark.parametrize("form", ["json", "text"])
def test_text_of_strangers_makes_no_line(form: str) -> None:
    """Four events for each text. What belongs to one of them is indented in the form for people."""
    texts = list(TEXTS.values())
    shown = lines(form, json.dumps(texts), program=FOREIGN)
    assert [line for line in shown if printable(line) != line] == []
    begun = [line for line in shown if not line.startswith("  ")]
    assert len(begun) == 4 * len(texts)
    if form == "json":
        assert [json.loads(line)["value"] for line in begun[::4]] == texts


@pytest.mark.parametrize("form", ["json", "text"])
def test_requests_to_the_hub_are_not_logged(form: str) -> None:
    """Presigned addresses are secrets."""
    assert "secret" not in "".join(lines(form))


def test_a_file_in_place_of_standard_error(tmp_path: Path) -> None:
    assert lines("json", str(tmp_path / "log")) == [""]
    written = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["level"] for line in written] == ["info", "warning", "error", "warning"]
