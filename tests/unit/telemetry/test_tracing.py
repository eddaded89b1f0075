"""When there are spans, and what it costs when there are none."""

import os
import subprocess
import sys

import pytest
from opentelemetry.trace import SpanKind, get_current_span

from replaceme_core import telemetry
from replaceme_core.telemetry import Origin, bound, origin
from tests.fixtures.service.otlp import collector

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
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
        ({"OTEL_SERVICE_NAME": "x"}, False),
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
