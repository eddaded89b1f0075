"""The table of transitions."""

import itertools

import pytest

from replaceme_core.ledger.states import ALLOWED, TERMINAL, JobStatus, is_allowed

LEGAL = {
    ("queued", "running"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("running", "queued"),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(JobStatus, JobStatus)))
def test_each_pair(old: JobStatus, new: JobStatus) -> None:
    assert is_allowed(old, new) is ((old.value, new.value) in LEGAL)


def test_each_status_has_its_row() -> None:
    assert set(ALLOWED) == set(JobStatus)
    assert {status for status, following in ALLOWED.items() if not following} == TERMINAL
