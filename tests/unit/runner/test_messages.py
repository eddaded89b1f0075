import errno

import pytest

from replaceme_core.errors import BrokenModel, CalibrationTooSmall, HubUnreachable
from replaceme_core.runner.messages import describe


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


def test_the_message_of_a_mistake_names_its_class_only() -> None:
    assert describe(ValueError("/srv/secret/place")).message == (
        "a mistake of the service (ValueError); the worker's log says more"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory"),
        (
            OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of 79.1 GiB"),
            "out of memory: 2.00 GiB could not be allocated",
        ),
        (OSError(errno.ENOSPC, "No space left", "/srv/x/y"), "no space left on the device of the worker"),
        (BrokenModel("config.json cannot be read: no /srv/my-data/models/x"), "config.json cannot be read: no x"),
        (
            BrokenModel("cannot open '/srv/a/b.json', see https://a.example/b/c"),
            "cannot open 'b.json', see https://a.example/b/c",
        ),
        (HubUnreachable("the Hub is busy").because("at hub.internal:8080"), "the Hub is busy"),
        (BrokenModel("org/name: a/b/c.txt or 1/2 is not /both"), "org/name: a/b/c.txt or 1/2 is not /both"),
    ],
)
def test_the_message_says_nothing_of_the_machine(error: BaseException, message: str) -> None:
    assert describe(error).message == message


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
