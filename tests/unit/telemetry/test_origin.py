"""Ids of requests and traces: what is accepted, and how they reach other threads."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    "text",
    ["", "a b", "a\n", "a\nforged line", "-a", "ä", "a;b", "{}", "x" * (LONGEST_ID + 1), 7, None],
)
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
        TRACE + "-more",
        TRACE[:-1],
        TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        TRACE.replace("00f067aa0ba902b7", "0" * 16),
        "01" + TRACE[2:] + "-" + "x" * 300,
    ],
)
def test_a_traceparent_that_is_not_valid_is_refused(text: str) -> None:
    assert parse_traceparent(text) is None


@given(st.text())
def test_any_text(text: str) -> None:
    for parse in (parse_request_id, parse_traceparent):
        found = parse(text)
        assert found is None or (found.isascii() and found.isprintable() and len(found) <= LONGEST_ID)


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
