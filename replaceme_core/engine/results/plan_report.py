"""The plan of a run beside what it came to: the part `plan` of `replaceme.json`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from replaceme_core.engine.model.memory import free_bytes
from replaceme_core.engine.model.safetensors_io import tensors_of
from replaceme_core.engine.results.stage_clock import StageRecord
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.hub.model_files import CARRIED_FILES, CONFIG, read_config, side_files, weight_files
from replaceme_core.plan.model_shape import shape_of
from replaceme_core.plan.plan import Estimate, estimate
from replaceme_core.plan.workload import Machine
from replaceme_core.request.resolved_spec import ResolvedSpec
from replaceme_core.request.worker_kind import WorkerKind
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.requests import RunnerRequest


def plan_run(request: RunnerRequest, spec: ResolvedSpec, *, outline: ModelOutline, removed: int) -> Estimate:
    """What the run of a resolved specification is expected to take, from the headers of its model on this machine."""
    directory = Path(request.model_directory)
    weights, side = weight_files(directory), side_files(directory)
    kind = WorkerKind.CPU if spec.compute.device == "cpu" else WorkerKind.GPU
    caches = request.cache_directory is not None and request.cache_bytes > 0 and spec.compute.shards == 1
    machine = Machine(
        kind=kind,
        memory_bytes=free_bytes(torch.device("cpu")),
        keeps_cache=caches,
        cache_bytes=request.cache_bytes,
    )
    return estimate(
        spec,
        shape_of(outline, read_config(directory), tensors_of(weights)),
        machine=machine,
        removed=removed,
        download=sum(path.stat().st_size for path in (*weights, *side)),
        side_bytes=sum(path.stat().st_size for path in side if path.name in (CONFIG, *CARRIED_FILES)),
        is_remote=request.hub is not None,
        history=request.history,
    )


def plan_against_actual(planned: Estimate, stages: Sequence[StageRecord], *, output: Path) -> dict[str, object]:
    """Expected and actual seconds and peaks of each stage that ran, and the size of the weights in `output`."""
    on_device = planned.device_bytes > 0
    rows = []
    for record in stages:
        peak = planned.memory[Stage(record.name)]
        rows.append(
            {
                "name": record.name,
                "expected_seconds": planned.duration.stages[Stage(record.name)],
                "seconds": record.seconds,
                "expected_peak_bytes": peak.device if on_device else peak.host,
                "peak_bytes": record.peak_bytes,
            }
        )
    return {
        "basis": str(planned.duration.basis),
        "stages": rows,
        "expected_weight_bytes": planned.weights,
        "weight_bytes": sum(path.stat().st_size for path in weight_files(output)),
    }
