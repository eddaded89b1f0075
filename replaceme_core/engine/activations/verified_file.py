"""Safetensors files that are either what was written or not used: checkpoints of a job and cached results.

A file is written beside its place, read back, and renamed. Its header carries a JSON `record` and a SHA-256 `digest` of
the record and of all tensors. Nothing in a file is executed.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

PARTIAL: Final = ".partial"

Found = TypeVar("Found")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The record and the tensors of a file, the latter on the host."""

    record: dict[str, object]
    tensors: Mapping[str, torch.Tensor]


def write_verified(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    record: Mapping[str, object],
    *,
    read: Callable[[Path], Found | None],
) -> Found | None:
    """Write a file and return what `read` returns for it; `None`, and no file, if it cannot be read back.

    Raises `OSError` where it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}{PARTIAL}")
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"record": json.dumps(record), "digest": content_digest(record, held)}
    try:
        save_file(held, partial, metadata=metadata)
        found = read(partial)
        if found is not None:
            partial.replace(path)
        return found
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        delete_file(partial)


def read_contents(path: Path) -> Contents | None:
    """The record and all tensors; `None` if the file is missing or damaged."""
    try:
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            header = file.metadata() or {}
        record = dict(json.loads(header["record"]))
        if content_digest(record, tensors) != header["digest"]:
            raise ValueError("its digest does not match its content")
        return Contents(record=record, tensors=tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        logger.warning("the file %s is not used: %s", path.name, error)
        return None


def delete_file(path: Path) -> None:
    """Delete the file if it is there; one that cannot be deleted is logged."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the file %s could not be deleted: %s", path, error)


def delete_partial_files(directory: Path) -> None:
    """Delete what writers that were killed left in `directory`. Raises `OSError`."""
    for left_over in directory.glob(f"*{PARTIAL}"):
        left_over.unlink(missing_ok=True)


def content_digest(record: object, tensors: Mapping[str, torch.Tensor] | None = None) -> str:
    """SHA-256 of a JSON `record` and of `tensors` on the host, by name."""
    total = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, tensor in sorted((tensors or {}).items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
