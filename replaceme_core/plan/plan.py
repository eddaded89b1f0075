"""The plan for a request: what is read of its model, what would be refused, and what a job would take.

Reads the list of files, the config, the tokenizer's config and the headers of the weights, at the pinned commit.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from replaceme_core.errors import DoesNotFit, InvalidInput
from replaceme_core.families.layout import MapStructure
from replaceme_core.hub.model_files import CARRIED_FILES, CONFIG, files_to_download, stored_tensors
from replaceme_core.hub.port import Hub, Snapshot, read_hub_json
from replaceme_core.hub.quantized import DEQUANTIZED, READ_BYTES, scheme_of
from replaceme_core.plan.duration import Duration, expected_duration, inputs_of, modelled_seconds
from replaceme_core.plan.resources import (
    ModelShape,
    Peak,
    Workload,
    expected_workload,
    kept_streams,
    peaks_of,
    shape_of,
)
from replaceme_core.request import defaults
from replaceme_core.request.admission import (
    NO_SIZE_LIMITS,
    AdmittedModel,
    OutputRules,
    SizeLimits,
    admit_model,
    find_model,
    resolve_request,
)
from replaceme_core.request.method import TRAITS
from replaceme_core.request.removal import check_rank, check_removal, methods_of, structures_of, with_pattern_kept
from replaceme_core.request.resolve import HEALED_BYTES, Machine
from replaceme_core.request.spec import CompressionRequest, CompressionSpec
from replaceme_core.runner.messages import PastJob, Stage
from replaceme_core.shapes import Count, Notice, PlannedModel, WorkerPlan

TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATES = ("chat_template.jinja", "chat_template.json")
GOOD_TOKENS = 10
"""Fit tokens for each value of the stream's width; with fewer, maps are poor."""
_HEADER_BYTES = 112
"""Of a tensor in the header of a weight file."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What `work` takes, of a search at most. Bytes and seconds.

    `download` is what is fetched from the Hub, `write` the size of the result, `weights` that of its weights,
    `disk` the most that lies on the worker's disk at once. `memory` are the peaks by stage.
    """

    work: Workload
    blocks: Count
    parameters: Count
    download: int
    write: int
    weights: int
    disk: int
    memory: Mapping[Stage, Peak]
    duration: Duration

    @property
    def host_bytes(self) -> int:
        """The highest peak of the runner process on the host."""
        return max(peak.host for peak in self.memory.values())

    @property
    def device_bytes(self) -> int:
        """The highest peak on the GPU; 0 on a CPU."""
        return max(peak.device for peak in self.memory.values())


def estimate(
    work: Workload,
    shape: ModelShape,
    *,
    download: int,
    side_bytes: int,
    is_remote: bool,
    history: Sequence[PastJob],
    unpacked: int = 0,
) -> Estimate:
    """What `work` takes on a model of this `shape`.

    `download` and `side_bytes` are the bytes of all files that are fetched, and of those that are copied to the result;
    `unpacked` those of quantized weights in full precision.
    `history` are earlier jobs on such a worker, the newest first.
    """
    removed = work.spec.drop or work.removed
    after, weights = shape.parameters_after(removed), written_bytes(shape, removed)
    write = weights + side_bytes
    largest = written_bytes(shape, 1 if work.trials else removed) + side_bytes  # a search may end at one block
    modelled = modelled_seconds(shape, work, download=download, write=write, is_remote=is_remote)
    return Estimate(
        work=work,
        blocks=Count(before=shape.blocks, after=shape.blocks - work.removed),
        parameters=Count(before=shape.parameters, after=after),
        download=download,
        write=write,
        weights=weights,
        disk=(download if is_remote else 0) + unpacked + 2 * largest + _kept_on_disk(shape, work, after=after),
        memory=peaks_of(shape, work),
        duration=expected_duration(modelled, history, method=work.method, inputs=inputs_of(work.spec)),
    )


def written_bytes(shape: ModelShape, removed: Sequence[int] | int) -> int:
    """The weight files of a result without these blocks, in the dtype in which most of the source is stored."""
    kept = shape.blocks - (removed if isinstance(removed, int) else len(removed))
    tensors = shape.rest_tensors + shape.block_tensors * kept
    return shape.parameters_after(removed) * shape.item_bytes + tensors * _HEADER_BYTES


def _kept_on_disk(shape: ModelShape, work: Workload, *, after: int) -> int:
    """The streams, in the activation cache or beside the output; of a healing its targets and two checkpoints."""
    kept, heal = kept_streams(shape, work), work.spec.heal
    return kept if heal is None else kept + heal.tokens * defaults.TARGET_BYTES + 2 * HEALED_BYTES * after


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a job before it exists.

    `worker` is `None` where no service is asked. `estimate` is `None` where a refusal leaves nothing to compute with,
    `spec` where the request is refused.
    """

    model: PlannedModel
    worker: WorkerPlan | None = None
    estimate: Estimate | None = None
    spec: CompressionSpec | None = None
    warnings: Sequence[Notice] = ()
    refusals: Sequence[InvalidInput] = ()
    """What a submission would raise, the first one first."""


def read_shape(hub: Hub, model: AdmittedModel, files: Sequence[str]) -> ModelShape:
    """The shape of a model from the headers of the weights among its `files`. Raises `BrokenModel`."""
    return shape_of(model.outline, model.config, stored_tensors(model.snapshot, hub, files))


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans requests against one Hub, for workers like `machine`; `history` are their earlier jobs.

    `rules` and `limits` are those of the caller. `read_shape` may know shapes of earlier requests.
    """

    hub: Hub
    machine: Machine
    history: Callable[[], Sequence[PastJob]]
    rules: OutputRules
    calibration_root: Path | None
    is_remote: bool
    limits: SizeLimits = NO_SIZE_LIMITS
    tasks_directory: str | None = None
    read_shape: Callable[[Hub, AdmittedModel, Sequence[str]], ModelShape] = read_shape

    def plan(self, request: CompressionRequest) -> Plan:
        """The plan. What a submission would refuse is among its `refusals`.

        Raises `AccessDenied` and `Unavailable` where the Hub cannot be read.
        """
        plan = Plan(model=PlannedModel(repo_id=request.model.repo_id, supported=False))
        try:
            snapshot = find_model(request.model, self.hub)
            plan = replace(plan, model=PlannedModel.of(plan.model, revision=snapshot.revision))
            model = admit_model(snapshot, self.hub)
            row = model.outline.layout
            more = {"methods": methods_of(row), "structures": structures_of(row.structure)}
            plan = replace(plan, model=PlannedModel.of(plan.model, family=row.model_type, supported=True, **more))
            plan = replace(plan, warnings=self._warnings(model))
            found = self._estimate(request.to_spec(), model, history=self.history())
            plan = replace(plan, estimate=found, warnings=[*plan.warnings, *_few_tokens(found, model)])
        except InvalidInput as error:
            return replace(plan, refusals=[error])
        refusals: list[InvalidInput] = []
        try:
            resolved = resolve_request(
                request,
                self.hub,
                calibration_root=self.calibration_root,
                job_id="0" * 8,
                rules=self.rules,
                limits=self.limits,
                model=model,
                tasks_directory=self.tasks_directory,
            )
            plan = replace(plan, spec=resolved)
        except InvalidInput as error:
            refusals.append(error)
        for check in (partial(check_tokens, model=model), check_fit):
            try:
                check(found)
            except InvalidInput as error:
                refusals.append(error)
        return replace(plan, refusals=refusals)

    def check(self, spec: CompressionSpec, model: AdmittedModel) -> None:
        """Raise `DoesNotFit`, `CalibrationTooSmall` or `BrokenModel` for a job that cannot succeed on such a worker."""
        found = self._estimate(spec, model, history=())  # no time is looked at
        check_tokens(found, model)
        check_fit(found)

    def _estimate(self, spec: CompressionSpec, model: AdmittedModel, *, history: Sequence[PastJob]) -> Estimate:
        removed, snapshot = check_removal(spec, model.outline), model.snapshot
        wanted = files_to_download(snapshot, self.hub)
        copied = {CONFIG, *CARRIED_FILES} & set(wanted)
        shape = self.read_shape(self.hub, model, wanted)
        expected = _with_expected_method(spec, model)
        return estimate(
            expected_workload(expected, shape, machine=self.machine, removed=removed),
            shape,
            download=sum(snapshot.sizes[name] for name in wanted),
            side_bytes=sum(snapshot.sizes[name] for name in copied),
            is_remote=self.is_remote,
            history=history,
            unpacked=0 if scheme_of(model.config) is None else shape.parameters * READ_BYTES,
        )

    def _warnings(self, model: AdmittedModel) -> list[Notice]:
        found, snapshot, scheme = [], model.snapshot, scheme_of(model.config)
        if scheme is not None:
            found.append(Notice(code=DEQUANTIZED, message=scheme.note, field="model"))
        if snapshot.gated:
            message = (
                f"{snapshot.repo_id} is gated: those who made it set conditions for its use, which hold for the "
                "result too"
            )
            found.append(Notice(code="gated", message=message, field="model"))
        if not (model.outline.reads_images or _has_chat_template(snapshot, self.hub)):
            message = "the model has no chat template: conversations are plain text, and its answers continue texts"
            found.append(Notice(code="no_chat_template", message=message, field="model"))
        return found


def check_tokens(found: Estimate, model: AdmittedModel) -> None:
    """Raise `CalibrationTooSmall` if the fit tokens cannot determine a map."""
    method, row = found.work.spec.method, model.outline.layout
    structure = method.structure or structures_of(row.structure)[0]
    if TRAITS[method.name].fits and structure is MapStructure.FULL:
        check_rank(tokens=fit_tokens(found), width=model.outline.hidden_size)


def check_fit(found: Estimate) -> None:
    """Raise `DoesNotFit`, with the numbers, if the worker has too little memory or disk space."""
    machine = found.work.machine
    of_host = max(found.memory, key=lambda stage: found.memory[stage].host)
    of_device = max(found.memory, key=lambda stage: found.memory[stage].device)
    less = "fewer or shorter calibration samples, method least_squares or compute.loading blockwise"
    needs = (
        (found.host_bytes, f"host memory in the stage {of_host}", machine.memory_bytes, less),
        (found.device_bytes, f"GPU memory in the stage {of_device}", machine.device_bytes, less),
        (found.disk, "disk space", machine.disk_bytes, "or free space there"),
        (found.download, "the cache of downloads (REPLACEME_HUB_CACHE_BYTES)", machine.download_bytes, "or raise that"),
    )
    missing = {
        f"it needs about {needed:,} bytes of {what}, and the worker has {available:,}": advice
        for needed, what, available, advice in needs
        if available is not None and needed > available
    }
    if missing:
        raise DoesNotFit(
            f"the job does not fit on a worker of kind {machine.kind}: {'; '.join(missing)}; choose a smaller model, "
            f"{', '.join(dict.fromkeys(missing.values()))}",
            value=found.work.spec.model.repo_id,
        )


def fit_tokens(found: Estimate) -> int:
    """The tokens that maps are fitted on."""
    return (found.work.samples - found.work.held_out) * found.work.length


def _with_expected_method(spec: CompressionSpec, model: AdmittedModel) -> CompressionSpec:
    """`spec` with the method that a worker takes where it has to keep a pattern of kinds of blocks.

    Whether the model has one can be read with its class only: the worker refuses what could not keep it.
    """
    row = model.outline.layout
    if spec.drop is None and ((spec.compute.pattern_safe and row.per_layer_lists) or row.computed_lists):
        with suppress(InvalidInput):
            return with_pattern_kept(spec)
    return spec


def _few_tokens(found: Estimate, model: AdmittedModel) -> list[Notice]:
    width, tokens = model.outline.hidden_size, fit_tokens(found)
    if not TRAITS[found.work.method].fits or not width <= tokens < GOOD_TOKENS * width:
        return []
    message = (
        f"{tokens:,} tokens are fitted on, {tokens / width:.1f} for each of the {width:,} values of the stream; maps "
        "are good from about fifty on"
    )
    return [Notice(code="few_tokens", message=message, field="calibration.samples")]


def _has_chat_template(snapshot: Snapshot, hub: Hub) -> bool:
    if any(snapshot.has(name) for name in CHAT_TEMPLATES):
        return True
    return snapshot.has(TOKENIZER_CONFIG) and "chat_template" in read_hub_json(hub, snapshot, TOKENIZER_CONFIG)
