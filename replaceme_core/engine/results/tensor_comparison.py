"""Compare the weights of two models tensor by tensor: the same bytes, or which differ and by how much."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from replaceme_core.engine.model.safetensors_io import StoredTensor, tensors_of
from replaceme_core.hub.model_files import weight_files

MOST_LISTED = 1000


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """`what`: "values", or "missing", "added", "shape" or "dtype", where values cannot be compared.

    `differing` of `values` are not the same; `largest` is their greatest difference, `relative` the norm of the
    difference over that of the recorded tensor.
    """

    name: str
    what: str
    values: int
    differing: int | None = None
    largest: float | None = None
    relative: float | None = None


def compare_weights(recorded: Path, again: Path) -> dict[str, object]:
    """`same`, the number of `tensors`, and `differing`: the differences by name, at most `MOST_LISTED` of them.

    One tensor of each model is in memory at a time. Raises `BrokenModel` and `UnsafeModel` for files that are none.
    """
    before, after = (_by_name(directory) for directory in (recorded, again))
    found: list[TensorDifference] = []
    for name in sorted(before.keys() | after.keys()):
        difference = _difference(name, before.get(name), after.get(name))
        if difference is not None:
            found.append(difference)
    return {
        "same": not found,
        "tensors": len(before),
        "differing_tensors": len(found),
        "differing": [asdict(one) for one in _worst_first(found)[:MOST_LISTED]],
    }


def _by_name(directory: Path) -> dict[str, StoredTensor]:
    return {one.name: one for one in tensors_of(weight_files(directory))}


def _difference(name: str, before: StoredTensor | None, after: StoredTensor | None) -> TensorDifference | None:
    if after is None or before is None:
        known = before or after
        assert known is not None
        return TensorDifference(name=name, what="missing" if after is None else "added", values=known.numel)
    for what in ("shape", "dtype"):
        if getattr(before, what) != getattr(after, what):
            return TensorDifference(name=name, what=what, values=before.numel)
    old, new = before.read(), after.read()
    if old.numel() == 0 or torch.equal(old.flatten().view(torch.uint8), new.flatten().view(torch.uint8)):
        return None
    wide, change = old.double(), new.double() - old.double()
    return TensorDifference(
        name=name,
        what="values",
        values=before.numel,
        differing=int((old != new).sum()),
        largest=float(change.abs().max()),
        relative=float(change.norm() / wide.norm().clamp_min(torch.finfo(torch.float64).tiny)),
    )


def _worst_first(found: Sequence[TensorDifference]) -> list[TensorDifference]:
    return sorted(found, key=lambda one: float("-inf") if one.relative is None else -one.relative)
