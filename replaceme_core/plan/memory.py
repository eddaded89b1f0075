"""Peak memory of each stage, in bytes: what is held at once, added up from shapes.

What is held follows from the code of the stages; sizes that follow from constants elsewhere in the core are in
`constants.py`. The sums are estimates: of what is temporary, only the largest is counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.model_files import read_config, weight_files
from replaceme_core.plan import constants as of
from replaceme_core.plan.model_shape import ModelShape, rough_shape
from replaceme_core.plan.workload import Workload, expected_workload
from replaceme_core.request.method import Method
from replaceme_core.request.removal import check_removal
from replaceme_core.request.resolve import Machine
from replaceme_core.runner.bubblewrap import accelerators
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.requests import EvaluateRequest, ModelRequest, RunnerRequest

_MATRIX = 8
"""Bytes of a value of the sums."""
_FLOAT32 = 4
_PAIRS = 4  # M'M and M'E, each over fit and over held-out tokens


@dataclass(frozen=True, kw_only=True)
class Peak:
    """`host`: resident memory of the runner process, its interpreter and libraries included. `device`: of the GPU."""

    host: int
    device: int = 0


def peaks_of(shape: ModelShape, work: Workload) -> Mapping[Stage, Peak]:
    """The peak of each stage of the runner, in bytes. Stages that share a process of resolving or copying have none."""
    held = _held(shape, work)
    return {stage: _placed(used, work) for stage, used in held.items()}


def planned_host_bytes(request: ModelRequest) -> int:
    """What a runner is planned to take of the host's memory at its peak, in bytes, for a limit of twice as much.

    Without the headers of the weights (`rough_shape`). What depends on how much is free is taken as if that were
    enough, and the larger peak where the device is left open. Streams in memory count twice: a runner that may use less
    than four times their size has them on disk. Raises as `read_outline` and `check_removal` do.
    """
    if isinstance(request, EvaluateRequest):
        base = of.GPU_RUNNER_BYTES if accelerators() else of.RUNNER_BYTES
        # all models at once, in float32: of two bytes a value, the files and twice as much
        return base + 3 * sum(_weight_bytes(Path(directory)) for directory in request.directories)
    assert isinstance(request, RunnerRequest)
    spec, directory, cache_bytes = request.spec, Path(request.model_directory), 0
    if request.cache_directory is not None:
        cache_bytes = request.cache_bytes
    outline = read_outline(directory)
    shape = rough_shape(outline, read_config(directory), weight_bytes=_weight_bytes(directory))
    removed = check_removal(spec, outline)
    is_cpu = spec.compute.device == WorkerKind.CPU or not accelerators()
    planned = 0
    for kind in (WorkerKind.CPU,) if is_cpu else WorkerKind:
        machine = Machine(kind=kind, keeps_cache=cache_bytes > 0, cache_bytes=cache_bytes)
        work = expected_workload(spec, shape, machine=machine, removed=removed)
        peak = max(stage.host for stage in peaks_of(shape, work).values())
        planned = max(planned, peak + _kept_in_memory(shape, work))
    return planned


def _weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(directory))


@dataclass(frozen=True, kw_only=True)
class _Use:
    """Bytes: `model` and `work` are where the model is computed, `host` always on the host (streams that are kept,
    files that are mapped while a model is loaded)."""

    model: int = 0
    work: int = 0
    host: int = 0


def _placed(used: _Use, work: Workload) -> Peak:
    if work.on_gpu:
        # a model is loaded on the host before it is moved
        return Peak(
            host=of.GPU_RUNNER_BYTES + used.model + used.host,
            device=used.model + used.work,
        )
    return Peak(host=of.RUNNER_BYTES + used.model + used.work + used.host)


def _held(shape: ModelShape, work: Workload) -> dict[Stage, _Use]:
    dense = _model_bytes(shape, work, value_bytes=work.value_bytes)
    quantized = _quantized_bytes(shape, work) if work.spec.compute.quantization is not None else dense
    kept = _kept_in_memory(shape, work)
    loading = _Use(model=dense, host=_mapped(shape, work))
    stages = {
        Stage.CALIBRATE: _most(
            loading,
            _Use(model=quantized, work=_generation(shape, work, sequences=work.spec.calibration.generating)),
            _Use(model=quantized, work=_pass(shape, work) + _sums_of_pass(shape, work), host=kept),
        ),
        Stage.SELECT: _Use(model=quantized, work=_selection(shape, work), host=kept),
        Stage.SOLVE: _Use(model=quantized, work=_solution(shape, work), host=kept),
    }
    changes = _changes(shape, work)
    stored = _model_bytes(shape, work, value_bytes=shape.item_bytes)
    again = 0 if work.value_bytes == shape.item_bytes else _mapped(shape, work)
    stages[Stage.FOLD] = _Use(model=stored, work=changes + _largest_weight(shape) * _MATRIX, host=again)
    after = shape.parameters_after(work.removed)
    stages[Stage.SAVE] = _most(
        _Use(model=stored, work=changes),
        _Use(
            model=_model_bytes(shape, work, value_bytes=_FLOAT32, parameters=after),
            work=changes,
            host=_mapped(shape, work, parameters=after),
        ),
    )
    if work.measured:
        both = dense + _model_bytes(shape, work, value_bytes=work.value_bytes, parameters=after)
        answers = _generation(shape, work, sequences=of.MEASURED_ELSEWHERE)
        stages[Stage.EVALUATE] = _most(
            _Use(model=both, work=changes, host=_mapped(shape, work, parameters=after)),
            _Use(model=both, work=changes + max(_logits(shape, work), 0 if work.is_lazy else answers)),
        )
    if work.trials:
        stages[Stage.SELECT] = _of_trials(shape, work, stages)
    return stages


def _of_trials(shape: ModelShape, work: Workload, stages: Mapping[Stage, _Use]) -> _Use:
    """All that follows the pass, beside the model that is captured from and what is kept for the next trial.

    The result of a trial is largest where one block is removed. A quantized model is not the one that is measured.
    """
    dense = _model_bytes(shape, work, value_bytes=work.value_bytes)
    kept, changes = stages[Stage.SELECT].host, _changes(shape, work)
    more = 0 if work.spec.compute.quantization is None else dense
    held = stages[Stage.SELECT].model + more
    largest = shape.parameters_after(1)
    pruned = _model_bytes(shape, work, value_bytes=work.value_bytes, parameters=largest)
    stored = _model_bytes(shape, work, value_bytes=shape.item_bytes)
    return _most(
        *(replace(stages[stage], model=stages[stage].model + more) for stage in (Stage.SELECT, Stage.SOLVE)),
        _Use(
            model=held + stored,
            work=changes + _largest_weight(shape) * _MATRIX,
            host=kept + (0 if work.value_bytes == shape.item_bytes else _mapped(shape, work)),
        ),
        _Use(model=held + pruned, work=changes, host=kept + _mapped(shape, work, parameters=largest)),
        _Use(model=held + pruned, work=changes + _logits(shape, work), host=kept),
    )


def _most(*uses: _Use) -> _Use:
    """The largest of what is held one after another."""
    return max(uses, key=lambda one: one.model + one.work + one.host)


# Models


def _model_bytes(shape: ModelShape, work: Workload, *, value_bytes: int, parameters: int | None = None) -> int:
    """A model of this dtype in memory; read block by block, one block and what is outside of them."""
    if work.is_lazy:
        return (shape.rest_values + 2 * shape.largest_block) * value_bytes
    return (shape.parameters if parameters is None else parameters) * value_bytes


def _mapped(shape: ModelShape, work: Workload, *, parameters: int | None = None) -> int:
    """The weight files, which the library maps into memory while it loads a whole model."""
    if work.is_lazy:
        return 0
    return (shape.parameters if parameters is None else parameters) * shape.item_bytes


def _quantized_bytes(shape: ModelShape, work: Workload) -> int:
    bits = 4 if work.spec.compute.quantization == "4bit" else 8
    return shape.rest_values * work.value_bytes + sum(shape.block_values) * bits // 8


def _largest_weight(shape: ModelShape) -> int:
    return shape.width * shape.inner


# Streams and sums


def stream_bytes(shape: ModelShape, work: Workload) -> int:
    """One stream of all calibration tokens."""
    return work.tokens * shape.width * work.value_bytes


def store_bytes(shape: ModelShape, work: Workload) -> int:
    """The streams of all blocks, what their MLPs write, and their Gram matrices."""
    streams = (2 * shape.blocks + 1) * stream_bytes(shape, work)
    return streams + shape.blocks * 3 * shape.width**2 * _MATRIX


def keeps_streams(shape: ModelShape, work: Workload) -> bool:
    """Whether the streams of all blocks are kept: for later jobs, for methods that read them, for lazy loading."""
    searches = work.method in (Method.AUTO, Method.REFIT) and (work.one_by_one or work.method is Method.AUTO)
    one_pass = work.trials > 0 and store_bytes(shape, work) <= of.CHOICE_STREAM_BYTES
    return work.machine.keeps_cache or work.is_lazy or searches or one_pass


def store_place(shape: ModelShape, work: Workload) -> str:
    """Where they are kept: "cache" (files for later jobs), "memory" or "scratch" (files for this job)."""
    size = store_bytes(shape, work)
    if work.machine.keeps_cache and size <= work.machine.cache_bytes:
        return "cache"
    size = min(size, of.CHOICE_STREAM_BYTES)
    if work.is_lazy or (work.machine.memory_bytes is not None and size > of.MEMORY_SHARE * work.machine.memory_bytes):
        return "scratch"
    return "memory"


def _kept_in_memory(shape: ModelShape, work: Workload) -> int:
    is_in_memory = keeps_streams(shape, work) and store_place(shape, work) == "memory"
    return store_bytes(shape, work) if is_in_memory else 0


def _pass(shape: ModelShape, work: Workload) -> int:
    """What is temporary while a batch runs through a block, and is added to sums in float32."""
    batch = work.batch_tokens * shape.width
    part = work.batch_tokens
    if not work.on_gpu:
        most = of.REUSED_BYTES // (4 if work.is_lazy else 1)
        part = min(part, max(work.length, most // (of.MLP_WIDTH * shape.width * work.value_bytes)))
    inside = 3 * part * shape.inner * work.value_bytes
    return batch * (4 * work.value_bytes + 4 * _FLOAT32) + inside


def _sums_of_pass(shape: ModelShape, work: Workload) -> int:
    """Sums of all windows over the held-out tokens, and the ends of windows that are still open."""
    held_out = min(of.HELD_OUT_BYTES, work.held_out * work.length * shape.width * work.value_bytes * shape.blocks)
    if not _fits_maps(work):
        return held_out
    matrix = shape.width**2 * _MATRIX
    if work.spec.drop is not None or work.spec.method.groups > 1 or keeps_streams(shape, work):
        return 2 * _PAIRS * matrix + held_out
    open_ends = (work.removed + 1) * 2 * work.batch_tokens * shape.width * work.value_bytes
    return (shape.blocks - work.removed) * _PAIRS * matrix + open_ends + held_out


def _fits_maps(work: Workload) -> bool:
    return work.method not in (Method.BLOCK_INFLUENCE, Method.PERPLEXITY_GREEDY, Method.MERGE)


def _selection(shape: ModelShape, work: Workload) -> int:
    """The sums and maps of the windows that are replayed, or the maps of all sets that a search tries."""
    matrix = shape.width**2 * _MATRIX
    replays = _pass(shape, work) + _replayed_logits(shape, work)
    if not _fits_maps(work):
        return replays + (shape.largest_block * _MATRIX if work.method is Method.MERGE else 0)
    windows = min(shape.blocks - work.removed, work.spec.method.replays + of.SPARE_WINDOWS)
    needed = windows * (_PAIRS + 2) * matrix + 4 * matrix
    if work.one_by_one:
        needed = max(needed, (shape.blocks + of.TRIES * work.removed) * matrix)
    return needed + replays


def _solution(shape: ModelShape, work: Workload) -> int:
    """Solving for maps; for a refit the streams of the pruned model, and the largest projection."""
    matrix = shape.width**2 * _MATRIX
    if work.method not in (Method.REFIT, Method.AUTO):
        return 8 * matrix + _pass(shape, work) + _replayed_logits(shape, work)
    pruned = (3 if keeps_streams(shape, work) else 6) * stream_bytes(shape, work)
    largest = max(shape.inner, shape.width)
    projection = 3 * largest**2 * _MATRIX + 3 * largest * shape.width * _MATRIX
    tried = round(of.REFITTED * (shape.blocks - work.removed)) * shape.largest_block * work.value_bytes
    values = work.tokens * shape.inner
    inputs = values * work.value_bytes if values * _FLOAT32 <= of.KEPT_BYTES else 0
    results = 2 if work.method is Method.AUTO and work.spec.drop is None else 1  # the better one is kept
    return pruned + projection + tried + inputs + results * _changes(shape, work) + _pass(shape, work)


def _changes(shape: ModelShape, work: Workload) -> int:
    """The changes of weights that the result consists of, in float32, until the model is saved and after."""
    matrix = shape.width**2
    if work.method is Method.MERGE:
        return shape.largest_block * _MATRIX
    if work.method not in (Method.REFIT, Method.AUTO):
        return matrix * _MATRIX if _fits_maps(work) else 0
    blocks = of.REFITTED * (shape.blocks - work.removed)
    return round(blocks * (shape.inner * shape.width + 3 * matrix) * _FLOAT32)


# Logits and text


def _logits(shape: ModelShape, work: Workload) -> int:
    """Those of one batch of the evaluation, of both models, and the probabilities of one."""
    each = work.length * shape.vocabulary
    sequences = min(max(1, of.LOGITS_AT_ONCE // max(each, 1)), work.measured)
    return sequences * each * (3 * work.value_bytes + 2 * _FLOAT32)


def _replayed_logits(shape: ModelShape, work: Workload) -> int:
    """Those of a part of a held-out batch, their copy in float32 and their probabilities."""
    sequences = min(work.spec.compute.batch_size, max(1, work.held_out // of.HELD_OUT_BATCHES))
    values = min(of.REPLAYED_LOGITS, sequences * work.length * shape.vocabulary)
    return values * (work.value_bytes + 2 * _FLOAT32)


def _generation(shape: ModelShape, work: Workload, *, sequences: int) -> int:
    """Keys and values of the texts that are generated together, and their logits."""
    if not sequences:
        return 0
    texts_each = max(1, round(work.length / of.TEXT_TOKENS))
    texts = min(sequences * texts_each, of.BATCH_TEXTS)
    length = -(-work.length // texts_each)
    cache = 2 * shape.blocks * shape.key_value_width * length * texts * work.value_bytes
    return cache + texts * shape.vocabulary * (work.value_bytes + _FLOAT32)
