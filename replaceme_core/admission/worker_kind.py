"""Which kind of worker a job is for. Knows the standard library only.

A job with a route waits for a worker that serves it; one without is for whichever worker is free. There is a queue for
each route, of the same name, and one more for jobs without (`broker.py`).
"""

from enum import StrEnum


class WorkerKind(StrEnum):
    CPU = "cpu"
    GPU = "gpu"


def worker_kind_of(device: str | None) -> WorkerKind | None:
    """The workers that have `device`; `None` where none is named.

    >>> worker_kind_of("cpu"), worker_kind_of("cuda:0"), worker_kind_of(None)
    (<WorkerKind.CPU: 'cpu'>, <WorkerKind.GPU: 'gpu'>, None)
    """
    if device is None:
        return None
    return WorkerKind.CPU if device.partition(":")[0] == "cpu" else WorkerKind.GPU
