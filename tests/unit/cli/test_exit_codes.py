"""Exit codes: the documented numbers, and one for every error of the core."""

import pytest

from api.cli.exit_codes import EXIT_CODES, ExitCode, exit_code_of, exit_code_of_job, exit_code_of_status
from replaceme_core import errors


def all_errors(base: type[errors.ReplaceMeError] = errors.ReplaceMeError) -> list[type[errors.ReplaceMeError]]:
    own = [each for each in base.__subclasses__() if each.__module__ == errors.__name__]
    return [*own, *(deeper for each in own for deeper in all_errors(each))]


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.code)
def test_every_error_has_an_exit_code(error: type[errors.ReplaceMeError]) -> None:
    assert error.code in EXIT_CODES


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("invalid_input", 2),
        ("unsupported_family", 2),
        ("calibration_too_small", 2),
        ("out_of_space", 3),
        ("numerical_failure", 3),
        ("gate_rejected", 4),
        ("database_unreachable", 7),
        ("access_denied", 8),
        ("internal_error", 1),
        ("a code from the future", 1),
    ],
)
def test_error_codes(code: str, expected: int) -> None:
    assert exit_code_of(code) == expected


@pytest.mark.parametrize(
    ("status", "expected"), [(400, 2), (404, 2), (409, 2), (422, 2), (401, 8), (403, 8), (500, 7), (503, 7)]
)
def test_http_statuses(status: int, expected: int) -> None:
    assert exit_code_of_status(status) == expected


@pytest.mark.parametrize(("status", "expected"), [("succeeded", 0), ("failed", 3), ("cancelled", 5)])
def test_final_statuses_of_a_job(status: str, expected: int) -> None:
    assert exit_code_of_job(status) == expected


def test_a_job_that_a_gate_rejected() -> None:
    assert exit_code_of_job("failed", code="gate_rejected") == 4
    assert exit_code_of_job("failed", code="out_of_memory") == 3


def test_the_documented_numbers() -> None:
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 130]
