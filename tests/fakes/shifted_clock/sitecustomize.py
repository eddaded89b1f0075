"""First on PYTHONPATH, this module puts `time` and `datetime` of a Python process two hours ahead, but not `monotonic`.

Python imports it at startup, before any other module can import the real functions.
"""

import datetime
import time

SHIFT_SECONDS = 7200

_real_time, _real_time_ns, _real_datetime = time.time, time.time_ns, datetime.datetime


class _Kind(type):
    """Makes objects of the real class, such as C code creates, instances of the shifted class as well."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real_datetime)

    def __subclasscheck__(cls, other: type) -> bool:
        return issubclass(other, _real_datetime)


class Shifted(_real_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return _real_datetime.now(tz) + datetime.timedelta(seconds=SHIFT_SECONDS)

    @classmethod
    def utcnow(cls) -> datetime.datetime:
        return _real_datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=SHIFT_SECONDS)

    @classmethod
    def today(cls) -> datetime.datetime:
        return cls.now()


Shifted.__name__ = Shifted.__qualname__ = "datetime"
Shifted.__module__ = "datetime"
time.time = lambda: _real_time() + SHIFT_SECONDS
time.time_ns = lambda: _real_time_ns() + SHIFT_SECONDS * 10**9
datetime.datetime = Shifted  # type: ignore[misc]
