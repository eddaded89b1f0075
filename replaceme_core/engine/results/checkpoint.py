"""A method's decision, kept on disk: a job that is resumed need not calibrate and solve again.

A file's name is a key of all that the decision follows from, so it is never used for another one. It is written beside
its place, read back, and renamed. The job continues with what was read back, so that it gives the same weights
whether it was interrupted or not. Nothing in the file is executed: tensors are safetensors, and the records around them
are JSON in its header.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from replaceme_core.engine.activations.cache import code_digest
from replaceme_core.engine.activations.capture import with_intact_streams
from replaceme_core.engine.activations.verified_file import (
    content_digest,
    delete_file,
    delete_partial_files,
    read_contents,
    write_verified,
)
from replaceme_core.engine.methods.task import Candidate, Pruning, Task, find_method
from replaceme_core.engine.model.changes import Cut, FittedCut, ReadingChange, WeightChange
from replaceme_core.runner.messages import Stage

FORMAT: Final = 1
_RECORDS: Final[Mapping[str, type]] = {
    record.__name__: record for record in (Candidate, Cut, FittedCut, Pruning, ReadingChange, WeightChange)
}
_PLAIN: Final = (bool, int, float, str, type(None))
_NOT_DECIDING: Final = {"labels", "output", "evaluation", "priority", "max_queue_seconds", "max_runtime_seconds"}

logger = logging.getLogger(__name__)


def decide(task: Task, directory: Path | None) -> Pruning:
    """What the method decides for `task`, unless an earlier attempt at the same job has left its decision.

    It is left in `directory`, if there is one; where it cannot be written, it is not kept.
    """
    if directory is None:
        return with_intact_streams(partial(_carry_out, task))
    path = directory / f"{checkpoint_key(task)}.safetensors"
    device = torch.device(task.spec.compute.device)
    restored = _read(path, device=device)
    if restored is not None:
        task.begin(Stage.SOLVE, resumed_from=Stage.SOLVE)
        return restored
    return _keep(with_intact_streams(partial(_carry_out, task)), path, device=device)


def _carry_out(task: Task) -> Pruning:
    task.activations.prepare()  # before the method changes weights on trial: streams are those of the dense model
    return find_method(task.spec.method.name)(task)


def checkpoint_key(task: Task) -> str:
    """64 hex digits of the resolved specification with the model's commit, the tokens, the code and its libraries."""
    facts = {
        "format": FORMAT,
        "spec": task.spec.model_dump(mode="json", exclude=_NOT_DECIDING),
        "remove": task.remove,
        "tokens": [content_digest({}, [("tokens", each)]) for each in (task.tokens.fit, task.tokens.held_out)],
        "code": code_digest(),
        "versions": [version("replaceme"), str(torch.__version__), version("transformers")],
    }
    return content_digest(facts, [])


def _keep(pruning: Pruning, path: Path, *, device: torch.device) -> Pruning:
    """Write `pruning` and return what was read back; `pruning` itself if it cannot be written."""
    tensors: dict[str, torch.Tensor] = {}
    record = _encode(pruning, tensors)
    assert isinstance(record, dict)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_partial_files(path.parent)
        return write_verified(path, tensors, record, read=partial(_read, device=device)) or pruning
    except OSError as error:
        logger.warning("the checkpoint could not be written: %s", error)
        return pruning


def _read(path: Path, *, device: torch.device) -> Pruning | None:
    """`None` where there is none, or it is damaged; then it is deleted."""
    contents = read_contents(path)
    try:
        if contents is not None:
            pruning = _decode(contents.record, contents.tensors, device)
            if isinstance(pruning, Pruning):
                return pruning
            raise TypeError(f"it holds a {type(pruning).__name__}")
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("the checkpoint %s is not used: %s", path.name, error)
    delete_file(path)
    return None


def _encode(value: object, tensors: dict[str, torch.Tensor]) -> object:
    """As JSON; tensors go into `tensors` and leave their names. Raises `TypeError` for what is not known here."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        # the layout decides the rounding of what is multiplied with it
        turned = value.ndim == 2 and value.T.is_contiguous() and not value.is_contiguous()
        tensors[name] = (value.T if turned else value).detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "turned": turned, "host": value.device.type == "cpu"}
    if is_dataclass(value) and type(value).__name__ in _RECORDS:
        return {
            "record": type(value).__name__,
            "fields": {each.name: _encode(getattr(value, each.name), tensors) for each in fields(value)},
        }
    if isinstance(value, list | tuple):
        return [_encode(each, tensors) for each in value]
    if type(value) in _PLAIN:
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _decode(value: object, tensors: Mapping[str, torch.Tensor], device: torch.device) -> object:
    if isinstance(value, list):
        return [_decode(each, tensors, device) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        tensor = tensors[value["tensor"]]
        tensor = tensor.T if value["turned"] else tensor
        return tensor if value["host"] else tensor.to(device)
    make: Callable[..., object] = _RECORDS[value["record"]]
    return make(**{name: _decode(each, tensors, device) for name, each in value["fields"].items()})
