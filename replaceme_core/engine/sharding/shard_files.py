"""The files that workers share while they compute the shards of a calibration.

    DIRECTORY/plan.json                 the plan in force, and the key of its content
    DIRECTORY/KEY.tokens.safetensors    the fit tokens, so that no other worker reads and packs the text
    DIRECTORY/KEY.NUMBER.safetensors    the sums of one shard, in float64

The key covers all that the sums depend on, so a shard that is computed again replaces itself and nothing else. Files
are written as `activations/verified_file.py` describes.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from uuid import uuid4

import torch
import transformers
from safetensors import safe_open

from replaceme_core.engine.activations.content_key import code_digest, device_name, tensor_digest
from replaceme_core.engine.activations.verified_file import (
    DAMAGED,
    PARTIAL,
    delete_partial_files,
    read_record,
    write_verified,
)
from replaceme_core.engine.activations.window_sums import WindowSums
from replaceme_core.engine.model.cut import Cut
from replaceme_core.engine.numerics.distance import MeanAngle
from replaceme_core.engine.numerics.moments import SOLVE_DTYPE
from replaceme_core.families.resolve import ResolvedModel
from replaceme_core.library_errors import require_space
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.runner.messages import PLAN_FILE
from replaceme_core.wording import counted

FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`plan` is a random id, new for each directory: workers that read the same id see the same files."""

    plan: str
    key: str
    count: int
    cuts: tuple[Cut, ...]

    def shard(self, directory: Path, number: int) -> Path:
        return directory / f"{self.key}.{number:03d}.safetensors"

    def tokens(self, directory: Path) -> Path:
        return directory / f"{self.key}.tokens.safetensors"


def plan_key(spec: ResolvedSpec, cuts: Sequence[Cut], *, fit: torch.Tensor) -> str:
    """64 hex digits of all that the sums of every shard depend on, the present device included."""
    facts = {
        "format": FORMAT,
        "model": spec.model.model_dump(mode="json"),
        "compute": spec.compute.model_dump(mode="json"),
        "cuts": [str(cut) for cut in cuts],
        "tokens": tensor_digest(fit),
        "device": device_name(torch.device(spec.compute.device or "cpu")),
        "versions": [str(torch.__version__), transformers.__version__],
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def write_plan(directory: Path, *, key: str, count: int, cuts: Sequence[Cut], fit: torch.Tensor) -> Plan:
    """Write the plan, under a new id, or under that of an earlier attempt with the same plan. Raises `OSError`."""
    directory.mkdir(parents=True, exist_ok=True)
    delete_partial_files(directory, f"{PLAN_FILE}.")
    known = read_plan(directory)
    plan = Plan(plan=uuid4().hex, key=key, count=count, cuts=tuple(cuts))
    if known is not None and replace(known, plan=plan.plan) == plan and read_tokens(directory, known) is not None:
        plan = known
    elif write_verified(plan.tokens(directory), {"tokens": fit.to(torch.int32)}, {}, read=read_record) is None:
        raise OSError("the tokens of the plan cannot be read back")
    text = {"plan": plan.plan, "key": key, "count": count, "cuts": [[cut.start, cut.end] for cut in cuts]}
    partial = directory / f"{PLAN_FILE}.{uuid4().hex[:8]}{PARTIAL}"
    partial.write_text(json.dumps(text), encoding="utf-8")
    partial.replace(directory / PLAN_FILE)
    return plan


def check_room(directory: Path, plan: Plan, *, missing: int, width: int) -> None:
    """Raise `OutOfSpace` unless the sums of `missing` shards of a model of `width` fit on the disk.

    A disk that fills up halfway would waste the time of every worker that computed a shard. Corrections for sinks,
    which few windows have, are not counted.
    """
    matrices = len(plan.cuts) + len({cut.anchor for cut in plan.cuts})
    needed = missing * matrices * width**2 * SOLVE_DTYPE.itemsize
    require_space(directory, needed, purpose=f"storing the sums of {counted(missing, 'shards')}")


def read_plan(directory: Path) -> Plan | None:
    """The plan in force; `None` where there is none that can be read."""
    try:
        found = json.loads((directory / PLAN_FILE).read_text(encoding="utf-8"))
        cuts = tuple(Cut(start=int(start), end=int(end)) for start, end in found["cuts"])
        return Plan(plan=str(found["plan"]), key=str(found["key"]), count=int(found["count"]), cuts=cuts)
    except DAMAGED:
        return None


def read_tokens(directory: Path, plan: Plan) -> torch.Tensor | None:
    """The fit tokens (sequences, length) on the host; `None` where they are missing or damaged."""
    path = plan.tokens(directory)
    if read_record(path) is None:
        return None
    with safe_open(path, framework="pt") as file:
        tokens: torch.Tensor = file.get_tensor("tokens")
    return tokens.long()


def write_sums(path: Path, sums: WindowSums) -> bool:
    """Write the sums over the fit tokens; returns whether they could be read back. Raises `OSError`."""
    tensors = {_gram(anchor): each.fit.gram for anchor, each in sums.anchors.items()}
    cuts: dict[str, object] = {}
    for cut, each in sums.cuts.items():
        tensors[_cross(cut)] = each.fit.cross
        tensors.update({_correction(cut): correction for correction in each.fit.corrections})
        angle = each.angle
        cuts[str(cut)] = {
            "error": each.fit.error,
            "target": each.fit.target,
            "angle": [angle.total, angle.cosines, angle.tokens],
            "sinks": each.sinks,
        }
    anchors = {str(anchor): each.fit.tokens for anchor, each in sums.anchors.items()}
    return write_verified(path, tensors, {"keepers": anchors, "cuts": cuts}, read=read_record) is not None


def include_sums(path: Path, total: WindowSums, *, resolved: ResolvedModel) -> bool:
    """Add the sums in the file to `total`, of the same cuts; false, and nothing added, if it is missing or damaged."""
    record = read_record(path)
    if record is None:
        return False
    device = resolved.model.device
    try:
        anchors, cuts = record["keepers"], record["cuts"]
        assert isinstance(anchors, dict)
        assert isinstance(cuts, dict)
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            # one anchor block after the other, so that only the sums of a few cuts are in memory twice
            for anchor in total.anchors:
                some = [cut for cut in total.cuts if cut.anchor == anchor]
                part = WindowSums.empty(some, resolved=resolved, held_out=False)
                part.anchors[anchor].fit.gram = file.get_tensor(_gram(anchor)).to(device)
                part.anchors[anchor].fit.tokens = int(anchors[str(anchor)])
                for cut, each in part.cuts.items():
                    found = cuts[str(cut)]
                    each.fit.cross = file.get_tensor(_cross(cut)).to(device)
                    if _correction(cut) in names:
                        each.fit.corrections.append(file.get_tensor(_correction(cut)).to(device))
                    each.fit.error, each.fit.target = float(found["error"]), float(found["target"])
                    angle, cosines, count = found["angle"]
                    each.angle = MeanAngle(total=float(angle), cosines=float(cosines), tokens=int(count))
                    each.sinks = int(found["sinks"])
                total.include(part)
    except FileNotFoundError:
        return False
    return True


def _gram(anchor: int) -> str:
    return f"gram-{anchor}"


def _cross(cut: Cut) -> str:
    return f"cross-{cut}"


def _correction(cut: Cut) -> str:
    return f"correction-{cut}"
