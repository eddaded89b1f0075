"""Lines of the log as a process writes them, the origin of work, and spans: when there are any, and what they cost."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from opentelemetry.trace import SpanKind, get_current_span

from replaceme_core import telemetry
from replaceme_core.telemetry import (
    LONGEST_ID,
    Origin,
    bound,
    from_message,
    in_context,
    message_headers,
    new_request_id,
    origin,
    parse_request_id,
    parse_traceparent,
)
from replaceme_core.wording import printable
from tests.fixtures.hostile.texts import TEXTS
from tests.fixtures.service.otlp import collector

LOGGED = """
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


def lines(*arguments: str, program: str = LOGGED) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=True)
    assert done.stdout == b""
    return done.stderr.decode().removesuffix("\n").split("\n")


def test_every_line_is_an_object_with_the_ids() -> None:
    shown = lines("json")
    assert "secret" not in "".join(shown), "presigned addresses of the Hub are secrets"
    native, standard, broken, warning = map(json.loads, shown)
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
    assert "secret" not in "".join(shown)
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


def test_a_file_in_place_of_standard_error(tmp_path: Path) -> None:
    assert lines("json", str(tmp_path / "log")) == [""]
    written = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["level"] for line in written] == ["info", "warning", "error", "warning"]


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("text", ["", "a b", "a\n", "-a", "ä", "{}", "x" * (LONGEST_ID + 1), None])
def test_ids_that_are_not_plain_are_refused(text: object) -> None:
    assert parse_request_id(text) is None


def test_plain_ids_are_kept() -> None:
    for text in ("a", "x" * LONGEST_ID, "build-17.a_b", new_request_id()):
        assert parse_request_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ff" + TRACE[2:],
        TRACE.upper(),
        TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        TRACE.replace("00f067aa0ba902b7", "0" * 16),
        "01" + TRACE[2:] + "-" + "x" * 300,
    ],
)
def test_a_traceparent_that_is_not_valid_is_refused(text: str) -> None:
    assert parse_traceparent(text) is None


def test_a_message_carries_the_origin() -> None:
    found = Origin(request_id="r", traceparent=TRACE)
    assert message_headers() == {}
    with bound(found):
        headers = message_headers()
    assert from_message(headers) == found
    assert from_message(None) == from_message({"request_id": "two words", "traceparent": 7}) == Origin()


def test_another_thread_gets_the_origin_only_if_asked_to() -> None:
    seen: list[Origin] = []
    with bound(Origin(request_id="r")):
        threads = [
            threading.Thread(target=work)
            for work in (in_context(lambda: seen.append(origin())), lambda: seen.append(origin()))
        ]
        for thread in threads:
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


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, False),
    ],
)
def test_the_environment_decides(environ: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages are missing, only somebody who wants spans gets to know."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    warned: list[object] = []
    monkeypatch.setattr(telemetry.logger, "warning", lambda *words: warned.append(words[0] % words[1:]))
    telemetry.configure_spans(environ, service="tests")
    assert bool(warned) is wanted
    assert all("pip install 'replaceme[telemetry]'" in str(words) for words in warned)


PROGRAM = """
import os, sys
from opentelemetry.trace import SpanKind
import api.main, worker.app
from replaceme_core import telemetry
telemetry.configure_spans(os.environ, service="tests")
with telemetry.span("a", kind=SpanKind.INTERNAL) as span:
    assert not span.is_recording()
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))))
"""


def run(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program], env={**kept, **environ}, capture_output=True, text=True, check=True
    )


def test_nothing_is_imported_unless_it_is_wanted() -> None:
    assert run(PROGRAM).stdout == "[]\n"


@pytest.mark.parametrize(
    "environ", [{"OTEL_TRACES_EXPORTER": "zipkin"}, {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}]
)
def test_what_is_not_possible_is_a_line_in_the_log(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    telemetry.configure_spans(environ, service="tests")
    assert "expected OTEL_TRACES_EXPORTER=otlp over http/protobuf" in caplog.text
    with telemetry.span("a", kind=SpanKind.SERVER) as span:
        assert not span.is_recording()


def test_spans_are_parts_of_the_trace_of_their_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as there:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": there.url}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        telemetry.configure_spans(environ, service="tests")

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
        assert b"its text" not in b"".join(there.raw)
    assert (first.name, first.service, first.parent, first.failed) == ("outer", "replaceme-tests", TRACE[36:52], True)
    assert first.links == (TRACE[36:52],)
    assert first.attributes["error.type"] == "KeyError"
    assert (inner.parent, inner.trace, inner.failed) == (first.id, TRACE[3:35], False)
    assert inner.attributes == {"replaceme.stage": "solve"}
    assert alone.parent == ""
    assert alone.trace != first.trace


def test_a_collector_that_does_not_answer_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import os, time
from opentelemetry.trace import SpanKind
from replaceme_core import telemetry
telemetry.configure_spans(os.environ, service="tests")
began = time.monotonic()
for _ in range(5000):
    with telemetry.span("a", kind=SpanKind.INTERNAL):
        pass
telemetry.flush_spans(seconds=0.2)
print(time.monotonic() - began)
"""
    began = run(program, OTEL_EXPORTER_OTLP_ENDPOINT="http://192.0.2.1:4318")  # of no network
    assert float(began.stdout) < 5
