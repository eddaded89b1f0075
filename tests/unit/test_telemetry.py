"""Lines of the log as a process writes them, the origin of work, and spans: when there are any, and what they cost."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from opentelemetry.trace import SpanKind, get_current_span

from benchmarks.harness.processes import WAIT_SECONDS
from replaceme_core import telemetry
from replaceme_core.telemetry import (
    LONGEST_ID,
    Origin,
    bound,
    in_context,
    origin,
    parse_request_id,
    parse_traceparent,
)
from replaceme_core.wording import printable
from tests.fixtures.hostile.texts import TEXTS
from tests.fixtures.service.otlp import collector

PROGRAM = """
import json, logging, sys, warnings
import structlog
from replaceme_core import telemetry
from replaceme_core.telemetry import LogFormat, Origin, bound
telemetry.configure_logs(LogFormat(sys.argv[1]), service="tests", file=sys.argv[3] if len(sys.argv) > 3 else None)
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
for text in json.loads(sys.argv[2]):
    structlog.get_logger("a").warning(text, value=text, inside=[text], error=ValueError(text))
    logging.getLogger("b").warning("standard %s", text, extra={"outcome": text, "lines": text})
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("c").exception("it broke")
        structlog.get_logger("d").exception("it broke")
"""
STRANGE = list(TEXTS.values())


def logged(form: str, *arguments: str) -> str:
    """What a process writes to standard error."""
    command = [sys.executable, "-c", PROGRAM, form, json.dumps(STRANGE), *arguments]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == b""
    return done.stderr.decode()


def test_every_line_is_an_object_with_the_ids(tmp_path: Path) -> None:
    """In a file, where one is asked for."""
    assert logged("json", str(tmp_path / "log")) == ""
    shown = (tmp_path / "log").read_text().removesuffix("\n").split("\n")
    assert "secret" not in "".join(shown), "presigned addresses of the Hub are secrets"
    assert [line for line in shown if printable(line) != line] == []
    native, standard, broken, warning, *foreign = map(json.loads, shown)
    for line in (native, standard, broken):
        ids = {name: line[name] for name in ("request_id", "job_id", "attempt", "service")}
        assert ids == {"request_id": "r-1", "job_id": "j-1", "attempt": 2, "service": "tests"}
        assert line["timestamp"].endswith("Z")
    assert (native["event"], native["number"], native["level"]) == ("native", 7, "info")
    assert standard["event"] == 'standard with "quotes" and\na break'
    assert (standard["level"], standard["logger"], standard["outcome"]) == ("warning", "b", "failed")
    assert broken["exception"].splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "careful" in warning["event"]
    assert "request_id" not in warning
    assert [line["value"] for line in foreign[::4]] == STRANGE
    assert len(foreign) == 4 * len(STRANGE)


def test_as_text_for_people() -> None:
    """What belongs to an event is indented: no text of a stranger looks like an event."""
    shown = logged("text").removesuffix("\n").split("\n")
    assert not any("secret" in line or "color_message" in line for line in shown)
    assert [line for line in shown if printable(line) != line] == []
    assert "native" in shown[0] and "number=7" in shown[0] and "request_id=r-1" in shown[0]
    assert "  ZeroDivisionError: division by zero" in shown
    begun = [line for line in shown if not line.startswith("  ")]
    assert len(begun) == 4 + 4 * len(STRANGE)


UNWRITABLE = """
import logging, sys
import structlog
from replaceme_core import telemetry
telemetry.configure_logs(telemetry.LogFormat.JSON, service="tests")
for _ in range(3):
    structlog.get_logger("a").warning("native")
    logging.getLogger("b").warning("standard")
print("done", flush=True)
"""


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", UNWRITABLE], stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.stdout == b"done\n"


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_only_plain_ids_are_kept() -> None:
    for text in ("a", "x" * LONGEST_ID, "build-17.a_b", uuid4().hex):
        assert parse_request_id(text) == text
    for other in ("", "a b", "a\n", "-a", "ä", "{}", "x" * (LONGEST_ID + 1), None):
        assert parse_request_id(other) is None


def test_only_a_valid_traceparent_is_kept() -> None:
    assert parse_traceparent(TRACE) == TRACE
    others = ["", "ff" + TRACE[2:], TRACE.upper(), "01" + TRACE[2:] + "-" + "x" * 300]
    others += [TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), TRACE.replace("00f067aa0ba902b7", "0" * 16)]
    assert [parse_traceparent(other) for other in others] == [None] * len(others)


def test_another_thread_gets_the_origin_only_if_asked_to() -> None:
    seen: list[Origin] = []
    with bound(Origin(request_id="r")):
        for work in (in_context(lambda: seen.append(origin())), lambda: seen.append(origin())):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert seen == [Origin(request_id="r"), Origin()]
    assert origin() == Origin()


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.fixture(autouse=True)
def without_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after each test, this process exports none."""
    monkeypatch.setattr(telemetry, "_provider", None)
    monkeypatch.setattr(telemetry, "_tracer", telemetry._tracer)


MISSING, IMPOSSIBLE = "pip install 'replaceme[telemetry]'", "expected OTEL_TRACES_EXPORTER=otlp over http/protobuf"


@pytest.mark.parametrize(
    ("environ", "warned"),
    [
        ({}, ""),
        (ENDPOINT, MISSING),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, MISSING),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, MISSING),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, ""),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, IMPOSSIBLE),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, IMPOSSIBLE),
    ],
)
def test_the_environment_decides(
    environ: dict[str, str], warned: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the packages are missing, only somebody who wants spans gets to know, and it is no error."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    telemetry.configure_spans(environ, service="tests")
    assert warned in caplog.text
    assert bool(warned) is bool(caplog.text)
    with telemetry.span("a", kind=SpanKind.SERVER) as span:
        assert not span.is_recording()


def test_spans_are_parts_of_the_trace_of_their_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as there:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", there.url)
        telemetry.configure_spans(os.environ, service="tests")

        def fail() -> None:
            with telemetry.span("outer", kind=SpanKind.SERVER, link=TRACE) as outer:
                assert get_current_span() is outer
                span_id = f"{outer.get_span_context().span_id:016x}"
                assert origin() == Origin(request_id="r", traceparent=f"{TRACE[:36]}{span_id}-01")
                telemetry.start_span("inner", attributes={"replaceme.stage": "solve"}).end()
                raise KeyError("its text is in no span")

        with bound(Origin(request_id="r", traceparent=TRACE)):
            with pytest.raises(KeyError):
                fail()
            assert origin().traceparent == TRACE
        with telemetry.span("alone", kind=SpanKind.INTERNAL):
            pass
        telemetry.flush_spans(seconds=30)
        first, inner, alone = there.spans()
        assert b"its text" not in b"".join(one.body for one in there.received)
    assert (first.name, first.service, first.parent, first.failed) == ("outer", "replaceme-tests", TRACE[36:52], True)
    assert first.links == (TRACE[36:52],)
    assert first.attributes["error.type"] == "KeyError"
    assert (inner.parent, inner.trace, inner.failed) == (first.id, TRACE[3:35], False)
    assert inner.attributes == {"replaceme.stage": "solve"}
    assert alone.parent == ""
    assert alone.trace != first.trace


UNANSWERED = """
import os, time
from opentelemetry.trace import SpanKind
from replaceme_core import telemetry
telemetry.configure_spans(os.environ, service="tests")
began = time.monotonic()
for _ in range(5000):
    with telemetry.span("a", kind=SpanKind.INTERNAL):
        pass
telemetry.flush_spans(seconds=0.2)
assert time.monotonic() - began < 60
"""


def test_a_collector_that_does_not_answer_holds_nothing_up() -> None:
    """In a process of its own: the exporter's thread tries again for a long time, and draws random pauses."""
    address = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://192.0.2.1:4318"}  # of no network
    environ = {**os.environ, **address, "OTEL_EXPORTER_OTLP_TIMEOUT": "600"}
    subprocess.run([sys.executable, "-c", UNANSWERED], env=environ, check=True, timeout=WAIT_SECONDS)
