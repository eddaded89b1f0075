import errno
import json

import pytest
from pydantic import ValidationError

from replaceme_core.errors import BrokenModel, CalibrationTooSmall, HubUnreachable
from replaceme_core.runner.messages import MESSAGE, Measured, describe


class SafetensorError(Exception):
    """As the library names it; it keeps only the text of the system's error."""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


ALLOCATOR = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of 79.1 GiB"
FULL = "no space left on the disk where this ran"


def while_handling(context: Exception, error: Exception) -> Exception:
    """`error`, raised without `from` where `context` was handled: as libraries do, and mistakes of ours."""
    error.__context__ = context
    return error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), "out_of_memory", "out of memory"),
        (OutOfMemoryError(CUDA), "out_of_memory", "out of memory: 2.00 GiB could not be allocated"),
        (RuntimeError(ALLOCATOR), "out_of_memory", "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory", "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/srv/x/y"), "out_of_space", FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "out_of_space", FULL),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "out_of_space", FULL),
        (while_handling(OSError(errno.ENOSPC, "No space left"), RuntimeError("could not save")), "out_of_space", FULL),
        (
            while_handling(CalibrationTooSmall("too few"), KeyError("lost")),
            "internal_error",
            "a mistake of the service (KeyError); the worker's log says more",
        ),
        (
            ValueError("/srv/secret/place"),
            "internal_error",
            "a mistake of the service (ValueError); the worker's log says more",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            "internal_error",
            "a mistake of the service (OSError); the worker's log says more",
        ),
        (HubUnreachable("the Hub is busy").because("at hub.internal:8080"), "hub_unreachable", "the Hub is busy"),
        (
            BrokenModel("config.json cannot be read: no /srv/my-data/models/x"),
            "broken_model",
            "config.json cannot be read: no x",
        ),
        (
            BrokenModel("cannot open '/srv/a/b.json', see https://a.example/b/c"),
            "broken_model",
            "cannot open 'b.json', see https://a.example/b/c",
        ),
        (
            BrokenModel("org/name: a/b/c.txt or 1/2 is not /both"),
            "broken_model",
            "org/name: a/b/c.txt or 1/2 is not /both",
        ),
    ],
)
def test_each_error_has_its_code_and_says_nothing_of_the_machine(error: BaseException, code: str, message: str) -> None:
    failed = describe(error)
    assert (failed.code, failed.message) == (code, message)


METRIC = {"type": "metric", "stage": "solve", "name": "loss", "value": 1.5, "unit": "nats"}


@pytest.mark.parametrize(
    ("field", "most", "more"),
    [
        ("name", "n" * 100, "n" * 101),
        ("unit", "u" * 100, "u" * 101),
        ("candidate", "c" * 500, "c" * 501),
        ("block", 0, -1),
        ("block", 9_999, 10_000),
    ],
)
def test_a_metric_is_as_large_as_a_pipeline_makes_it(field: str, most: object, more: object) -> None:
    """A runner may be a stranger's, and what it sends is stored."""
    found = MESSAGE.validate_json(json.dumps({**METRIC, field: most}))
    assert isinstance(found, Measured)
    assert getattr(found, field) == most
    with pytest.raises(ValidationError, match=field):
        MESSAGE.validate_json(json.dumps({**METRIC, field: more}))
