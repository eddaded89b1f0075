"""The memory that a job takes, in bytes: what is held at once, added up from the shapes of its model.

What is held follows from the code of the stages. The sums are estimates: of what is temporary, only the largest is
counted. Time and disk space are computed from the same shapes and workloads.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from replaceme_core.hardware import WorkerKind, accelerators
from replaceme_core.hub.model_config import ModelOutline, read_outline, read_weights
from replaceme_core.hub.model_files import read_config, weight_files
from replaceme_core.hub.quantized import as_read, scheme_of
from replaceme_core.hub.safetensors_header import ITEM_BYTES, TensorPlace
from replaceme_core.request import defaults
from replaceme_core.request.calibration import held_out_samples
from replaceme_core.request.gate import most_trials
from replaceme_core.request.method import Method, Selection
from replaceme_core.request.removal import check_removal
from replaceme_core.request.resolve import (
    HEALED_BYTES,
    VALUE_BYTES,
    Machine,
    ResolvedSpec,
    healed_at_once,
    kept_for_gradients,
    resolve_spec,
    texts_at_once,
)
from replaceme_core.request.spec import CompressionSpec, HealedWeights, Loading
from replaceme_core.request.tasks import expanded, task_tokens
from replaceme_core.runner.messages import EvaluateRequest, ModelRequest, RunnerRequest, Stage

RUNNER_BYTES, GPU_BUILD_BYTES = 400 * 2**20, 920 * 2**20
"""Measured: resident memory of a runner on a CPU with the interpreter and all libraries, before a model is loaded; with
a torch that was built for CUDA, such as the one of PyPI, much of that is the library's."""
GPU_RUNNER_BYTES = 3 * 2**30
"""The same with the libraries of a GPU and its context. Not measured by the tests."""
TRIES = 4
"""Maps that a search for blocks makes in each step, beside the first ones."""
REFITTED = 0.5
"""Share of the kept blocks that are refitted: those after the first cut, without the last third of the model."""
_MATRIX = 8
"""Bytes of a value of the sums."""
_FLOAT32 = 4
_PIXEL = 2
_PAIRS = 4  # M'M and M'E, each over fit and over held-out tokens
_COMPARING = frozenset({Method.LEAST_SQUARES, Method.COSINE, Method.REFIT, Method.MERGE})
"""Methods that compare sets of blocks on stored streams, unless the blocks are named."""
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size")
_HEADS = ("num_attention_heads", "n_head")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ROUTED_TO = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k", "top_k_experts")
_OF_EXPERTS = re.compile(r"\.experts\.|\.block_sparse_moe\.(in|out)put_linear\.|\.mlp\.(in|out)put_linear\.")
"""In the names of the routed ones, and not of shared ones."""
_HEAD = "lm_head.weight"
_DEFAULT_INNER = 4


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Counts of values, unless stated otherwise.

    `block_values` has one entry for each block. `rest_values` are outside of blocks, tied ones counted once.
    `item_bytes` is the size of a stored value, of the dtype that most have.
    `inner` is the width of an MLP, `key_value_width` that of the keys of all heads together.
    """

    block_values: tuple[int, ...]
    rest_values: int
    block_tensors: int
    rest_tensors: int
    item_bytes: int
    width: int
    inner: int
    key_value_width: int
    vocabulary: int
    positions: int | None = None
    """Of one image, where the model reads images."""
    pixels: int = 0
    """Of one image, in all three channels."""
    longest: int | None = None
    """Tokens of a sequence, where positions are a table."""
    idle_values: int = 0
    """Of all blocks: those of the experts that a token is not routed to."""

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self.block_values)

    @property
    def parameters(self) -> int:
        return self.rest_values + sum(self.block_values)

    @property
    def computed_values(self) -> int:
        """Those of the blocks that a token is multiplied with."""
        return sum(self.block_values) - self.idle_values

    @property
    def largest_block(self) -> int:
        return max(self.block_values)

    def parameters_after(self, removed: Sequence[int] | int) -> int:
        """Parameters without the blocks `removed`, or without that number of blocks of the usual size."""
        if isinstance(removed, int):
            return self.parameters - round(removed * sum(self.block_values[1:]) / (self.blocks - 1))
        return self.parameters - sum(self.block_values[block] for block in removed)


def shape_of(outline: ModelOutline, config: Mapping[str, object], tensors: Sequence[TensorPlace]) -> ModelShape:
    """The shape of an admitted model. Raises `BrokenModel` if config and weights are not of one model."""
    kept = read_weights(outline, config, as_read(config, tensors))
    text = outline.layout.part_of(config)
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", outline.layout.tied)))
    blocks, item_bytes = [0] * outline.blocks, Counter[int]()
    rest, rest_tensors, of_experts = 0, 0, 0
    for tensor in kept:
        item_bytes[ITEM_BYTES[tensor.dtype]] += tensor.numel
        number = outline.layout.block_number(tensor.name)
        if number is not None:
            blocks[number] += tensor.numel
            of_experts += tensor.numel if _OF_EXPERTS.search(tensor.name) else 0
        elif not (tied and tensor.name == _HEAD):
            rest, rest_tensors = rest + tensor.numel, rest_tensors + 1
    experts = _first(text, _EXPERTS) or 1
    routed_to = min(_first(text, _ROUTED_TO) or experts, experts)
    return ModelShape(
        block_values=tuple(blocks),
        rest_values=rest,
        block_tensors=(len(kept) - rest_tensors) // outline.blocks,
        rest_tensors=rest_tensors,
        item_bytes=item_bytes.most_common(1)[0][0],
        idle_values=of_experts * (experts - routed_to) // experts,
        **_widths(outline, text),
    )


def rough_shape(outline: ModelOutline, config: Mapping[str, object], *, weight_bytes: int) -> ModelShape:
    """The shape as the size of the weight files says it: all blocks alike, two bytes for each value that is read.

    For processes that a stranger's headers are kept away from.
    """
    widths = _widths(outline, outline.layout.part_of(config))
    values = max(_rough_values(config, weight_bytes), outline.blocks)
    rest = min(2 * widths["vocabulary"] * outline.hidden_size, values // 2)
    blocks = ((values - rest) // outline.blocks,) * outline.blocks
    return ModelShape(block_values=blocks, rest_values=rest, block_tensors=0, rest_tensors=0, item_bytes=2, **widths)


def _widths(outline: ModelOutline, config: Mapping[str, object]) -> dict[str, Any]:
    """The fields of a shape that the config says."""
    width, heads = outline.hidden_size, _first(config, _HEADS) or 1
    head_width = _first(config, ("head_dim",)) or width // heads
    return {
        "width": width,
        "inner": _first(config, _INNER) or _DEFAULT_INNER * width,
        "key_value_width": head_width * (_first(config, ("num_key_value_heads", "num_kv_heads")) or heads),
        "vocabulary": _first(config, ("vocab_size",)) or 0,
        "positions": outline.positions,
        "longest": outline.longest,
        "pixels": 0 if outline.positions is None else 3 * (_first(config, ("image_size",)) or 0) ** 2,
    }


def _first(config: Mapping[str, object], names: Sequence[str]) -> int | None:
    """The first of the fields that is a positive whole number."""
    found = (config.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The amounts that memory and time depend on: sequences of `length` tokens, bytes, numbers of blocks.

    `removed` blocks are removed, at most.
    """

    spec: ResolvedSpec
    machine: Machine
    removed: int

    @property
    def trials(self) -> int:
        """How many trials a search for the deepest cut has at most; 0 for another job."""
        return most_trials(self.removed) if self.spec.searches else 0

    @property
    def method(self) -> Method:
        return self.spec.method.name

    @property
    def samples(self) -> int:
        return self.spec.calibration.samples

    @property
    def length(self) -> int:
        return self.spec.calibration.max_length

    @property
    def sequences(self) -> int:
        """All that calibrate and judge; some of them are not part of the samples."""
        return self.samples + self.spec.calibration.beside_samples

    @property
    def tokens(self) -> int:
        """All calibration tokens, the held-out ones included."""
        return self.sequences * self.length

    @property
    def held_out(self) -> int:
        return held_out_samples(self.samples)

    @property
    def measured(self) -> int:
        """Sequences that are evaluated on; 0 without an evaluation."""
        return self.spec.evaluation.samples if self.spec.evaluation.enabled else 0

    @property
    def value_bytes(self) -> int:
        """Of a value in the computation."""
        return VALUE_BYTES[self.spec.compute.dtype]

    @property
    def on_gpu(self) -> bool:
        return self.machine.kind is WorkerKind.GPU

    @property
    def is_lazy(self) -> bool:
        """Whether blocks are read one at a time."""
        return self.spec.compute.loading is Loading.BLOCKWISE

    @property
    def one_by_one(self) -> bool:
        """Whether blocks are chosen one at a time, with a map for each set that is tried."""
        if self.spec.drop is not None:
            return False
        if self.method is Method.REFIT:
            return self.spec.method.selection is Selection.ONE_BY_ONE and self.spec.method.groups == 1
        return self.method is Method.AUTO


def expected_workload(spec: CompressionSpec, shape: ModelShape, *, machine: Machine, removed: int) -> Workload:
    """The workload on a worker like `machine`."""
    resolved = resolve_spec(
        spec,
        machine,
        values=shape.parameters,
        removed=removed,
        positions=shape.positions,
        longest=shape.longest,
    )
    return Workload(spec=resolved, machine=machine, removed=removed)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """`host`: resident memory of the runner process, its interpreter and libraries included. `device`: of the GPU."""

    host: int
    device: int = 0


def peaks_of(shape: ModelShape, work: Workload) -> Mapping[Stage, Peak]:
    """The peak of each stage of the runner, in bytes. Stages that share a process of resolving or copying have none."""
    images = work.samples + defaults.IMAGES_FOR_SEQUENCE * work.measured
    pixels = _PIXEL * shape.pixels * images  # held from the first stage to the last
    return {
        stage: replace(used, host=used.host + pixels).peak(on_gpu=work.on_gpu)
        for stage, used in _held(shape, work).items()
    }


@cache
def runner_bytes() -> int:
    """What a runner on a CPU of this machine takes before a model is loaded; torch itself is not imported for that."""
    torch = find_spec("torch")
    libraries = [] if torch is None else list(Path(str(torch.origin)).parent.glob("lib/libtorch_cuda*"))
    return GPU_BUILD_BYTES if libraries else RUNNER_BYTES


def planned_host_bytes(request: ModelRequest) -> int:
    """What a runner is planned to take of the host's memory at its peak, in bytes, for a limit of twice as much.

    Without the headers of the weights (`rough_shape`). What depends on how much is free is taken as if that were
    enough, and the larger peak where the device is left open. Raises as `read_outline` and `check_removal` do.
    """
    if isinstance(request, EvaluateRequest):
        base = GPU_RUNNER_BYTES if accelerators() else runner_bytes()
        # all models at once, in float32: of two bytes a value, the files and twice as much
        models = map(Path, request.directories)
        return base + 3 * 2 * sum(_rough_values(read_config(model), _weight_bytes(model)) for model in models)
    assert isinstance(request, RunnerRequest)
    spec, directory = request.spec, Path(request.model_directory)
    cache_bytes = 0 if request.cache_directory is None else request.cache_bytes
    outline = read_outline(directory)
    shape = rough_shape(outline, read_config(directory), weight_bytes=_weight_bytes(directory))
    removed = check_removal(spec, outline)
    is_cpu = spec.compute.device == WorkerKind.CPU or not accelerators()
    kinds = (WorkerKind.CPU,) if is_cpu else tuple(WorkerKind)
    machines = [Machine(kind=kind, cache_bytes=cache_bytes) for kind in kinds]
    works = [expected_workload(spec, shape, machine=one, removed=removed) for one in machines]
    return max(peak.host for work in works for peak in peaks_of(shape, work).values())


def _weight_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(directory))


def _rough_values(config: Mapping[str, object], weight_bytes: int) -> int:
    """How many values files of this size hold, at two bytes for each that is not quantized."""
    scheme = scheme_of(config)
    return int(weight_bytes / (2 if scheme is None else scheme.bytes_per_value))


@dataclass(frozen=True, kw_only=True)
class _Use:
    """Bytes: `model` and `work` are where the model is computed, `host` always on the host (streams that are kept,
    files that are mapped while a model is loaded)."""

    model: int = 0
    work: int = 0
    host: int = 0

    def peak(self, *, on_gpu: bool) -> Peak:
        if on_gpu:  # a model is loaded on the host before it is moved
            return Peak(host=GPU_RUNNER_BYTES + self.model + self.host, device=self.model + self.work)
        return Peak(host=runner_bytes() + self.model + self.work + self.host)


def _held(shape: ModelShape, work: Workload) -> dict[Stage, _Use]:
    dense = _model_bytes(shape, work, value_bytes=work.value_bytes)
    quantized = _quantized_bytes(shape, work) if work.spec.compute.quantization is not None else dense
    loading = _Use(model=dense, host=_mapped(shape, work))
    stages = {
        Stage.CALIBRATE: _most(
            loading,
            _Use(model=quantized, work=_generation(shape, work, sequences=work.spec.calibration.generating)),
            _Use(model=quantized, work=_pass(shape, work) + _sums(shape, work)),
        ),
        Stage.SELECT: _Use(model=quantized, work=_selection(shape, work)),
        Stage.SOLVE: _Use(model=quantized, work=_solution(shape, work)),
    }
    changes = _changes(shape, work)
    stored = _model_bytes(shape, work, value_bytes=shape.item_bytes)
    again = 0 if work.value_bytes == shape.item_bytes else _mapped(shape, work)
    stages[Stage.FOLD] = _Use(model=stored, work=changes, host=again)
    after = shape.parameters_after(1 if work.trials else work.removed)
    if work.spec.heal is not None:
        stages[Stage.HEAL] = _healing(shape, work, after=after)
    compared = shape.item_bytes if work.is_lazy else _FLOAT32
    verified = _model_bytes(shape, work, value_bytes=compared, parameters=after)
    stages[Stage.SAVE] = _Use(model=verified, work=changes, host=_mapped(shape, work, parameters=after))
    if work.measured:
        both = dense + _model_bytes(shape, work, value_bytes=work.value_bytes, parameters=after)
        answers = _generation(shape, work, sequences=defaults.MEASURED_ELSEWHERE)
        stages[Stage.EVALUATE] = _most(
            _Use(model=both, work=changes, host=_mapped(shape, work, parameters=after)),
            _Use(
                model=both,
                work=changes + max(_logits(shape, work), _logits_of_tasks(shape, work), 0 if work.is_lazy else answers),
            ),
        )
    if work.trials:
        stages[Stage.SELECT] = _of_trials(stages, dense=dense, more=0 if quantized == dense else dense)
    return stages


def _healing(shape: ModelShape, work: Workload, *, after: int) -> _Use:
    """The original beside the logits of a sequence; then the pruned model in training, in float32."""
    heal = work.spec.heal
    assert heal is not None
    dense = _model_bytes(shape, work, value_bytes=work.value_bytes)
    logits = work.length * shape.vocabulary
    frozen = shape.vocabulary * shape.width
    trained = after - frozen
    if heal.weights is HealedWeights.SOME:  # two cuts
        trained = min(trained, (4 * defaults.HEAL_AROUND + defaults.HEAL_LAST) * shape.largest_block)
    at_once = healed_at_once(logits)
    kept, _ = kept_for_gradients(
        at_once * work.length, blocks=shape.blocks - work.removed, width=shape.width, free=work.machine.model_bytes
    )
    copies = after * work.value_bytes if work.value_bytes < _FLOAT32 else 0
    training = copies + kept + at_once * logits * (work.value_bytes + 4 * _FLOAT32)
    state = _FLOAT32 * after + (HEALED_BYTES - _FLOAT32) * trained
    return _most(
        _Use(model=dense, host=_mapped(shape, work)),
        _Use(
            model=dense,
            work=max(
                logits * (work.value_bytes + _FLOAT32), _generation(shape, work, sequences=defaults.HEAL_GENERATED)
            ),
        ),
        _Use(model=state, work=training, host=heal.tokens * defaults.TARGET_BYTES),
    )


def _of_trials(stages: Mapping[Stage, _Use], *, dense: int, more: int) -> _Use:
    """All that follows the pass, beside the model that is captured from and what is kept for the next trial.

    A quantized model is not the one that is measured: then `more` is the size of that one, the `dense` one.
    """
    held, fold, evaluate = stages[Stage.SELECT], stages[Stage.FOLD], stages[Stage.EVALUATE]
    return _most(
        *(replace(one, model=one.model + more) for one in (held, stages[Stage.SOLVE])),
        replace(fold, model=fold.model + held.model + more, host=fold.host + held.host),
        replace(evaluate, model=evaluate.model + held.model + more - dense, host=evaluate.host + held.host),
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
    return 0 if work.is_lazy else _model_bytes(shape, work, value_bytes=shape.item_bytes, parameters=parameters)


def _quantized_bytes(shape: ModelShape, work: Workload) -> int:
    bits = 4 if work.spec.compute.quantization == "4bit" else 8
    return shape.rest_values * work.value_bytes + sum(shape.block_values) * bits // 8


# Streams and sums


def stream_bytes(shape: ModelShape, work: Workload) -> int:
    """One stream of all calibration tokens."""
    return work.tokens * shape.width * work.value_bytes


def store_bytes(shape: ModelShape, work: Workload) -> int:
    """The streams of all blocks, and what their MLPs write."""
    return (2 * shape.blocks + 1) * stream_bytes(shape, work)


def kept_streams(shape: ModelShape, work: Workload) -> int:
    """Bytes of the streams that are kept on disk.

    All of them for lazy loading, and for later jobs where they fit into the cache. To compare sets of blocks, a part.
    """
    size = store_bytes(shape, work)
    if work.is_lazy or size <= work.machine.cache_bytes:
        return size
    compares = work.method is Method.AUTO or (work.spec.drop is None and work.method in _COMPARING)
    return min(size, defaults.CHOICE_STREAM_BYTES) if work.trials > 0 or compares else 0


def _pass(shape: ModelShape, work: Workload) -> int:
    """What is temporary while a batch runs through a block, and is added to sums in float32."""
    part = tokens = min(work.spec.compute.batch_size, work.samples) * work.length
    if not work.on_gpu:
        most = defaults.PART_BYTES // (4 if work.is_lazy else 1)
        part = min(part, max(work.length, most // (defaults.MLP_WIDTH * shape.width * work.value_bytes)))
    inside = 3 * part * shape.inner * work.value_bytes
    return tokens * shape.width * (4 * work.value_bytes + 4 * _FLOAT32) + inside


def _sums(shape: ModelShape, work: Workload) -> int:
    """Those of one cut."""
    return 2 * _PAIRS * shape.width**2 * _MATRIX if _fits_maps(work) else 0


def _fits_maps(work: Workload) -> bool:
    return work.method not in (Method.BLOCK_INFLUENCE, Method.PERPLEXITY_GREEDY, Method.MERGE)


def _selection(shape: ModelShape, work: Workload) -> int:
    """The sums of one cut, and the maps of all that are replayed."""
    matrix = shape.width**2 * _MATRIX
    replays = _pass(shape, work) + _replayed_logits(shape, work)
    if not _fits_maps(work):
        return replays + (shape.largest_block * _MATRIX if work.method is Method.MERGE else 0)
    maps = shape.blocks + TRIES * work.removed if work.one_by_one else work.spec.method.replays
    needed = (2 * _PAIRS + 4) * matrix + maps * shape.width**2 * _FLOAT32
    return needed + replays


def _solution(shape: ModelShape, work: Workload) -> int:
    """Solving for maps; for a refit the streams of the pruned model, and the largest projection."""
    matrix = shape.width**2 * _MATRIX
    if work.method not in (Method.REFIT, Method.AUTO):
        return 8 * matrix + _pass(shape, work) + _replayed_logits(shape, work)
    pruned = (3 if kept_streams(shape, work) == store_bytes(shape, work) else 6) * stream_bytes(shape, work)
    largest = max(shape.inner, shape.width)
    projection = 3 * largest**2 * _MATRIX + 3 * largest * shape.width * _MATRIX
    tried = round(REFITTED * (shape.blocks - work.removed)) * shape.largest_block * work.value_bytes
    values = work.tokens * shape.inner
    inputs = values * work.value_bytes if values * _FLOAT32 <= defaults.KEPT_INPUT_BYTES else 0
    results = 2 if work.method is Method.AUTO and work.spec.drop is None else 1  # the better one is kept
    return pruned + projection + tried + inputs + results * _changes(shape, work) + _pass(shape, work)


def _changes(shape: ModelShape, work: Workload) -> int:
    """The changes of weights that the result consists of, in float32, until the model is saved and after."""
    matrix = shape.width**2
    if work.method is Method.MERGE:
        return shape.largest_block * _MATRIX
    if work.method not in (Method.REFIT, Method.AUTO):
        return matrix * _MATRIX if _fits_maps(work) else 0
    blocks = REFITTED * (shape.blocks - work.removed)
    return round(blocks * (shape.inner * shape.width + 3 * matrix) * _FLOAT32)


# Logits and text


def _logits(shape: ModelShape, work: Workload) -> int:
    """Those of a part of a batch of the evaluation, of both models; their copy in float32 and their probabilities."""
    sequences = min(max(1, defaults.LOGITS_AT_ONCE // max(work.length * shape.vocabulary, 1)), work.measured)
    values = min(_logits_at_once(work), sequences * work.length * shape.vocabulary)
    return values * (2 * work.value_bytes + 2 * _FLOAT32)


def _logits_of_tasks(shape: ModelShape, work: Workload) -> int:
    """Those of the texts that are read together, and their probabilities.

    The longest text is taken to be as long as all the texts of a usual question.
    """
    asked = work.spec.evaluation
    lengths = (task_tokens([name], limit=1, few_shot=asked.few_shot) for name in expanded(asked.tasks))
    logits = max(lengths, default=0) * shape.vocabulary
    return 2 * texts_at_once(logits) * logits * work.value_bytes


def _logits_at_once(work: Workload) -> int:
    return defaults.LOGITS_AT_ONCE_BY_BLOCK if work.is_lazy else defaults.LOGITS_AT_ONCE


def _replayed_logits(shape: ModelShape, work: Workload) -> int:
    """Those of a part of a held-out batch, their copy in float32 and their probabilities."""
    sequences = min(work.spec.compute.batch_size, max(1, work.held_out // defaults.HELD_OUT_BATCHES))
    values = min(_logits_at_once(work), sequences * work.length * shape.vocabulary)
    return values * (work.value_bytes + 2 * _FLOAT32)


def _generation(shape: ModelShape, work: Workload, *, sequences: int) -> int:
    """Keys and values of the texts that are generated together, and their logits."""
    if not sequences:
        return 0
    texts_each = max(1, round(work.length / defaults.TEXT_TOKENS))
    texts = min(sequences * texts_each, defaults.BATCH_TEXTS)
    length = -(-work.length // texts_each)
    cache = 2 * shape.blocks * shape.key_value_width * length * texts * work.value_bytes
    return cache + texts * shape.vocabulary * (work.value_bytes + _FLOAT32)
