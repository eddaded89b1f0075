import errno

import pytest

from replaceme_core.errors import CalibrationTooSmall, HubUnreachable
from worker.failure import describe


class SafetensorError(Exception):
    """As the library names it; it keeps only the text of the system's error."""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HubUnreachable("no answer"), "hub_unreachable"),
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "out_of_space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "out_of_space"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "out_of_space"),
        (KeyError("lost"), "internal_error"),
        (OSError(errno.EIO, "Input/output error"), "internal_error"),
    ],
)
def test_each_error_has_its_code(error: BaseException, code: str) -> None:
    assert describe(error).code == code


def test_the_message_names_class_and_first_line() -> None:
    assert describe(ValueError("bad\nand a trace")).message == "ValueError: bad"


def test_the_field_is_handed_on() -> None:
    assert describe(CalibrationTooSmall("too few", field="calibration")).field == "calibration"


def test_a_wrapper_does_not_hide_that_the_disk_is_full() -> None:
    def save() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("could not save")  # noqa: B904 -- as libraries do

    with pytest.raises(RuntimeError) as caught:
        save()
    assert describe(caught.value).code == "out_of_space"


def test_our_own_mistake_while_handling_an_input_error_is_not_the_clients() -> None:
    def handle() -> None:
        try:
            raise CalibrationTooSmall("too few")
        except CalibrationTooSmall:
            raise KeyError("lost")  # noqa: B904 -- as a mistake would

    with pytest.raises(KeyError) as caught:
        handle()
    assert describe(caught.value).code == "internal_error"
