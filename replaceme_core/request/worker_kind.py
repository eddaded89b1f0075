"""The kinds of workers, and the kind that a job is for. Imports the standard library only.

A job for one kind waits for a worker of that kind; a job for no particular kind runs on the first free worker. Each
kind has a queue of the same name, and there is one more for the other jobs (`broker/celery_config.py`).

The database and the settings call the kind of worker `route`.
"""

from enum import StrEnum


class WorkerKind(StrEnum):
    CPU = "cpu"
    GPU = "gpu"


def worker_kind_of(device: str | None) -> WorkerKind | None:
    """The kind of worker that has `device`; `None` if no device is named.

    >>> worker_kind_of("cpu"), worker_kind_of("cuda:0"), worker_kind_of(None)
    (<WorkerKind.CPU: 'cpu'>, <WorkerKind.GPU: 'gpu'>, None)
    """
    if device is None:
        return None
    return WorkerKind.CPU if device.partition(":")[0] == "cpu" else WorkerKind.GPU
