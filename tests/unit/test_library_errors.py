"""Free disk space, and the errors that mean there is none left."""

import errno
from pathlib import Path

import pytest

from replaceme_core.errors import OutOfSpace
from replaceme_core.library_errors import is_out_of_space, require_space


def test_more_than_is_free_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        OutOfSpace, match=r"^the result takes at least 1,152,921,504,606,846,976 bytes, [0-9,]+ are free$"
    ) as caught:
        require_space(tmp_path / "model", 1 << 60, purpose="the result")
    assert caught.value.reason == f"under {tmp_path / 'model'}"
    require_space(tmp_path / "model", 1, purpose="the result")


@pytest.mark.parametrize(
    ("error", "out_of_space"),
    [
        (OSError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("Data processing error: No space left on device"), True),
        (OSError("I/O error: File too large (os error 27)"), True),
        (OSError(errno.EACCES, "Permission denied", "/data/no space left"), False),
        (RuntimeError("something else"), False),
    ],
)
def test_an_error_of_the_system_is_recognised_by_code_or_text(error: Exception, out_of_space: bool) -> None:
    assert is_out_of_space(error) is out_of_space
