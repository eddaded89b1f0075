"""A method's decision, kept on disk: a job that is resumed need not calibrate and solve again.

A file's name is a key of all that the decision follows from, so it is never used for another one. It is written beside
its place, read back, and renamed. The job continues with what was read back, so that it gives the same weights
whether it was interrupted or not. Nothing in the file is executed: tensors are safetensors, and the records around them
are JSON in its header.
"""

import logging
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import TypeAdapter
from torch.utils._pytree import tree_map, tree_map_only

from replaceme_core.engine.activations.cache import code_digest
from replaceme_core.engine.activations.capture import with_intact_streams
from replaceme_core.engine.activations.verified_file import (
    content_digest,
    delete_file,
    delete_partial_files,
    read_contents,
    write_verified,
)
from replaceme_core.engine.methods.task import Pruning, Task, find_method
from replaceme_core.request.spec import NOT_DECIDING
from replaceme_core.runner.messages import Stage

_PRUNING: Final = TypeAdapter(Pruning)

logger = logging.getLogger(__name__)


def decide(task: Task, directory: Path | None) -> Pruning:
    """What the method decides for `task`, unless an earlier attempt at the same job has left its decision.

    It is left in `directory`, if there is one; where it cannot be written, it is not kept.
    """
    if directory is None:
        return with_intact_streams(partial(_carry_out, task))
    path = directory / f"{checkpoint_key(task)}.safetensors"
    restored = _read(path)
    if restored is not None:
        task.begin(Stage.SOLVE, resumed_from=Stage.SOLVE)
        return restored
    return _keep(with_intact_streams(partial(_carry_out, task)), path)


def _carry_out(task: Task) -> Pruning:
    task.activations.prepare()  # before the method changes weights on trial: streams are those of the dense model
    return find_method(task.spec.method.name)(task)


def checkpoint_key(task: Task) -> str:
    """64 hex digits of the resolved specification with the model's commit, the tokens, the code and its libraries."""
    facts = {
        "spec": task.spec.model_dump(mode="json", exclude={*NOT_DECIDING, "evaluation"}),
        "remove": task.remove,
        "code": code_digest(),
        "versions": [version("replaceme"), str(torch.__version__), version("transformers")],
    }
    return content_digest(facts, task.tokens.calibrating)


def _keep(pruning: Pruning, path: Path) -> Pruning:
    """Write `pruning` and return what was read back; `pruning` itself if it cannot be written."""
    tensors: dict[str, torch.Tensor] = {}

    def named(value: torch.Tensor) -> dict[str, object]:
        name = str(len(tensors))
        # the layout decides the rounding of what is multiplied with it
        turned = value.ndim == 2 and value.T.is_contiguous() and not value.is_contiguous()
        tensors[name] = (value.T if turned else value).detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name, "turned": turned}

    record = tree_map_only(torch.Tensor, named, _PRUNING.dump_python(pruning))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_partial_files(path.parent)
        return write_verified(path, tensors, record, read=_read) or pruning
    except OSError as error:
        logger.warning("the checkpoint could not be written: %s", error)
        return pruning


def _read(path: Path) -> Pruning | None:
    """With its tensors on the host. `None` where there is none, or it is damaged; then it is deleted."""
    try:
        if (contents := read_contents(path)) is not None:
            value = partial(_value, tensors=contents.tensors)
            return _PRUNING.validate_python(tree_map(value, contents.record, is_leaf=_is_tensor))
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("the checkpoint %s is not used: %s", path.name, error)
    delete_file(path)
    return None


def _is_tensor(found: object) -> bool:
    """Whether it stands for a tensor in a record."""
    return isinstance(found, dict) and "tensor" in found


def _value(found: Any, *, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not _is_tensor(found):
        return found
    tensor = tensors[found["tensor"]]
    return tensor.T if found["turned"] else tensor
