"""Resolves a specification: every default is filled in here and nowhere else, by the facts of one machine.

The worker calls `resolve_spec` with the facts of its own machine, the API for a plan with those of its workers.
`ResolvedSpec` is a type of its own, so that code that computes need not check whether a field is still open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from replaceme_core.errors import InvalidInput
from replaceme_core.hardware import WorkerKind
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.request import defaults
from replaceme_core.request.calibration import NO_OTHER_TEXT, SHORTEST, CalibrationSpec, held_out_samples
from replaceme_core.request.fields import GENERAL, PARTS_OF_GENERAL, one_of
from replaceme_core.request.gate import most_trials
from replaceme_core.request.method import Method, MethodSpec
from replaceme_core.request.spec import CompressionSpec, ComputeSpec, Dtype, HealedWeights, HealSpec, Loading

FITTED_TOKENS = 20_480
JUDGING_TOKENS = 12_000
"""At most this many tokens of the general text calibrate, and judge; by SmolLM2's tokenizer it has 57,000."""
FEWEST_JUDGING = 2
MOST_JUDGING = 16
"""Sequences of each source that judges. With a single one, blocks were chosen by chance."""
AUTO_PART_OF_RUNTIME = 0.5
"""Of a limit of time, for the steps of `auto`: the rest is for reading, saving and measuring."""
LONG_LIMIT_SECONDS = 86_400.0
"""Longer limits are against jobs that hang, and leave `auto` alone."""

TASK_BATCH = 8
"""Texts of a task that are read together, at most."""
VALUE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
HEALED_BYTES = 16
"""Of a value that is trained: the weight, its gradient and two means of that, in float32."""
MARGIN = 1.25
"""Factor on the bytes of the weights, for temporary tensors while the model is loaded and run."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is known of a worker, or of those of one kind. Bytes; `None` where it is not known.

    `cpu_dtype` is the default of a CPU. `cache_bytes` is the limit of the activation cache; 0: no streams are left for
    later jobs. `download_bytes` is that of the cache of downloads.
    """

    kind: WorkerKind
    memory_bytes: int | None = None
    device_bytes: int | None = None
    disk_bytes: int | None = None
    download_bytes: int | None = None
    cpu_dtype: Dtype = "float32"
    device: str | None = None
    threads: int = 1
    cache_bytes: int = 0

    @property
    def model_bytes(self) -> int | None:
        """Memory where the model is: of the GPU, or of the host."""
        return self.device_bytes if self.kind is WorkerKind.GPU else self.memory_bytes


class ResolvedCalibration(CalibrationSpec):
    """With the number of samples and their length.

    Other fields may be open, as in a specification of an earlier version: then there is nothing of what they name.
    """

    samples: int
    max_length: int

    @property
    def repeating(self) -> int:
        """How many of the fitted sequences repeat passages."""
        return round((self.repeated or 0.0) * (self.samples - held_out_samples(self.samples)))

    @property
    def judges(self) -> tuple[bool, ...]:
        """Of each source of the mix: whether it has held-out sequences beside those of the samples.

        The text of `judged_on` has, unless it is the only text, and so has a text whose share is 0; the model's own
        text has where another one is fitted.
        """
        fitted = [source.name for source in self.mix if not source.self_generated and source.share > 0]
        has_others = any(name != self.judged_on for name in fitted)
        return tuple(
            source.share > 0 and bool(fitted)
            if source.self_generated
            else source.share == 0 or (has_others and source.name == self.judged_on)
            for source in self.mix
        )

    @property
    def judging(self) -> int:
        """How many held-out sequences a source has that judges beside the samples: half as many as are held out, and
        one at least, however long."""
        most = max(1, min(MOST_JUDGING, JUDGING_TOKENS // self.max_length))
        return min(max(FEWEST_JUDGING, held_out_samples(self.samples) // 2), most)

    @property
    def generating(self) -> int:
        """How many sequences the model generates, about."""
        judges = any(judge and source.self_generated for source, judge in zip(self.mix, self.judges, strict=True))
        samples = self.samples - (held_out_samples(self.samples) if judges else 0)
        return round(samples * self.generated_share) + (self.judging if judges else 0)

    @property
    def beside_samples(self) -> int:
        """How many sequences calibrate and judge that are not part of `samples`, at most."""
        return (sum(self.judges) + 2 * (self.repeating > 0)) * self.judging + self.repeating


class ResolvedMethod(MethodSpec):
    """With its name."""

    name: Annotated[Method, one_of(Method)]


class ResolvedCompute(ComputeSpec):
    """With everything that decides the rounding."""

    device: str
    dtype: Dtype
    batch_size: int
    threads: int


class ResolvedSpec(CompressionSpec):
    """What is carried out: every default filled in, on the machine that does the work. Its JSON is that of its base."""

    calibration: ResolvedCalibration
    method: ResolvedMethod
    compute: ResolvedCompute


def resolve_spec(
    spec: CompressionSpec,
    machine: Machine,
    *,
    values: int,
    removed: int = 1,
    positions: int | None = None,
    longest: int | None = None,
) -> ResolvedSpec:
    """`spec` with every default filled in for a model of `values` values on `machine`; what it names stays.

    `removed` blocks go, at most. Where the memory is not known, the model is taken to fit. Of a short text there may be
    fewer samples in the end (`engine.text.tokens`). `positions` are those of one image, where the model reads images;
    `longest` is what its table of positions has, where there is one.
    """
    models = 2 if spec.evaluation.enabled else 1  # the dense and the pruned one are evaluated side by side
    compute = resolve_compute(spec.compute, machine, values=values, models=models)
    on_cpu = machine.kind is WorkerKind.CPU
    parts = {name: getattr(spec, name) for name in CompressionSpec.model_fields}
    return ResolvedSpec(
        **parts
        | {
            "compute": compute,
            "calibration": resolve_text(spec, on_cpu=on_cpu, loading=compute.loading, longest=longest)
            if positions is None
            else _resolve_images(spec, on_cpu=on_cpu, positions=positions),
            "method": _resolve_method(spec, loading=compute.loading, removed=removed),
            "heal": _resolve_heal(spec, machine, values=values, loading=compute.loading),
        }
    )


def _resolve_heal(spec: CompressionSpec, machine: Machine, *, values: int, loading: Loading) -> HealSpec | None:
    """All weights are trained where they fit, with the state of the optimiser, into the memory that is free.

    Raises `InvalidInput` where the model does not fit as a whole.
    """
    asked, free = spec.heal, machine.model_bytes
    if asked is None:
        return None
    if loading is Loading.BLOCKWISE:
        raise InvalidInput(
            f"healing trains the whole model in memory, and a model of {values:,} values does not fit into what is "
            "free: leave heal out",
            field="heal",
        )
    fits = free is None or MARGIN * HEALED_BYTES * values <= free
    weights = asked.weights or (HealedWeights.ALL if fits else HealedWeights.SOME)
    return asked.model_copy(update={"weights": weights})


def healed_at_once(logits: int) -> int:
    """Sequences of a step that are computed together, of this number of logits each."""
    return next(size for size in (defaults.HEAL_BATCH, 2, 1) if size * logits <= defaults.LOGITS_AT_ONCE or size == 1)


def texts_at_once(logits: int) -> int:
    """Texts of a task that are read together, of at most this number of logits each.

    Together they may have more logits than a part of an evaluation: one short text at a time would not fill a GPU.
    """
    return max(1, min(TASK_BATCH, TASK_BATCH * defaults.LOGITS_AT_ONCE // max(1, logits)))


def kept_for_gradients(tokens: int, *, blocks: int, width: int, free: int | None) -> tuple[int, bool]:
    """The bytes that a pass over `tokens` keeps for its gradients, about, and whether blocks are computed a second
    time instead, because they would be more than a part of the `free` ones; `None`: enough are free."""
    stream = 2 * tokens * width
    kept = blocks * defaults.HEAL_KEPT * stream
    if free is None or kept <= defaults.HEAL_CHECKPOINTING_FROM * free:
        return kept, False
    return (blocks + defaults.HEAL_KEPT) * stream, True


def _resolve_images(spec: CompressionSpec, *, on_cpu: bool, positions: int) -> ResolvedCalibration:
    """Nothing beside the images."""
    samples, length = usual_size(spec, on_cpu=on_cpu, positions=positions)
    first = next(source for source in spec.calibration.mix if not source.self_generated)
    update: dict[str, object] = {
        "dataset": first.name,
        "sources": None,  # a plan says what one source takes, and that several are refused (`check_inputs`)
        "samples": samples,
        "max_length": length,
        "judged_on": NO_OTHER_TEXT,
        "self_generated": 0.0,
        "general": 0.0,
        "repeated": 0.0,
    }
    return ResolvedCalibration.model_validate(spec.calibration.model_dump() | update)


OF_TEXT = ("sources", "max_length", "template", "self_generated", "general", "repeated", "judged_on")
"""Fields of a calibration that are for text; resolved for images, all but the length say that there is none."""
_OF_IMAGES = ("embedding_distance",)
_OF_PERPLEXITY = ("perplexity_ratio", "worst_perplexity_ratio", "divergence")
"""Criteria of a gate."""


def check_inputs(spec: CompressionSpec, outline: ModelOutline) -> None:
    """Raise `InvalidInput` for what does not go with what the model reads, text or images."""
    calibration, model_type = spec.calibration, outline.layout.model_type
    folders = [one for one in calibration.mix if one.is_file and one.name.endswith("/")]
    if not outline.reads_images:
        if folders:
            raise InvalidInput(
                f"a {model_type} model is calibrated on text, and {folders[0].name} is a directory of images",
                field=folders[0].name_field,
                value=folders[0].name,
            )
        _refuse_criteria(spec, _OF_IMAGES, "is for models of images; a language model has perplexity_ratio")
        return
    nothing = (None, 0, NO_OTHER_TEXT, "auto", outline.positions)
    for name in OF_TEXT:
        if getattr(calibration, name) not in nothing:
            raise InvalidInput(
                f"{name} is for text, and a {model_type} model reads images; leave it out",
                field=f"calibration.{name}",
                value=getattr(calibration, name),
            )
    if not (folders or calibration.mix[0].is_on_hub):
        raise InvalidInput(
            f"a {model_type} model reads images: name a directory of PNG, JPEG or WebP files (file:NAME/), or a data "
            "set on the Hub with a column of images",
            field=calibration.mix[0].name_field,
            value=calibration.dataset,
        )
    if spec.evaluation.tasks:
        raise InvalidInput(
            f"tasks are for language models, and a {model_type} model reads images; leave them out",
            field="evaluation.tasks",
            value=list(spec.evaluation.tasks),
        )
    if spec.heal is not None:
        raise InvalidInput("healing is for language models; leave heal out", field="heal")
    if spec.compute.loading is Loading.BLOCKWISE:
        raise InvalidInput(
            "models of images are loaded as a whole; leave loading out", field="compute.loading", value="blockwise"
        )
    _refuse_criteria(spec, _OF_PERPLEXITY, "is for language models; a model of images has embedding_distance")


def _refuse_criteria(spec: CompressionSpec, names: Sequence[str], why: str) -> None:
    for name in names:
        if spec.gate is not None and getattr(spec.gate, name) is not None:
            raise InvalidInput(f"{name} {why}", field=f"gate.{name}")


def resolve_compute(asked: ComputeSpec, machine: Machine, *, values: int = 0, models: int = 1) -> ResolvedCompute:
    """A model is read as a whole if `models` of this size fit into free memory at once, with a margin.

    So must one in float32: the result is verified in it.
    """
    on_cpu, loading, free = machine.kind is WorkerKind.CPU, asked.loading, machine.model_bytes
    dtype = asked.dtype or (machine.cpu_dtype if on_cpu else "bfloat16")
    if loading is Loading.AUTO:
        needed = MARGIN * values * max(models * VALUE_BYTES[dtype], VALUE_BYTES["float32"])
        loading = Loading.WHOLE if free is None or needed <= free else Loading.BLOCKWISE
    filled = {
        "device": asked.device or machine.device or ("cpu" if on_cpu else "cuda"),
        "dtype": dtype,
        "batch_size": asked.batch_size or defaults.BATCH_SIZE,
        "threads": asked.threads or machine.threads,
        "loading": loading,
    }
    return ResolvedCompute.model_validate(dict(asked) | filled)


def _resolve_method(spec: CompressionSpec, *, loading: Loading, removed: int) -> ResolvedMethod:
    """The method that is named; else `auto` where it can run as a whole, else `least_squares`.

    A model that is read block by block would be read again for each step of `auto`. A job with a limit of time gives
    `auto` a part of it for its steps; those of all trials, where the deepest cut is looked for.
    """
    method, name = spec.method, spec.expected_method
    if method.name is None and loading is Loading.BLOCKWISE and Method.LEAST_SQUARES in method.possible:
        name = Method.LEAST_SQUARES
    update: dict[str, object] = {"name": name}
    limit = spec.max_runtime_seconds
    is_open = method.name is None and name is Method.AUTO and method.time_budget_seconds is None
    if is_open and limit is not None and limit <= LONG_LIMIT_SECONDS:
        trials = most_trials(removed) if spec.searches else 1
        update["time_budget_seconds"] = max(1.0, limit * AUTO_PART_OF_RUNTIME / trials)
    return ResolvedMethod.model_validate(method.model_dump() | update)


def usual_size(
    spec: CompressionSpec, *, on_cpu: bool, longest: int | None = None, positions: int | None = None
) -> tuple[int, int]:
    """The samples and their length, as given or else the usual ones; these no longer than the model can read.

    Of images, each of which takes this number of `positions`, as many as fill the tokens that a text would have.
    """
    samples, length = defaults.CPU_CALIBRATION if on_cpu else defaults.ACCELERATOR_CALIBRATION
    if positions is not None:
        samples = spec.calibration.samples or max(held_out_samples(1) + 1, samples * length // positions)
        return samples, max(SHORTEST, positions)
    if on_cpu and spec.mix_is_open:
        samples = defaults.CPU_SAMPLES_OF_OPEN_MIX
    length = max(SHORTEST, min(length, longest or length))
    return spec.calibration.samples or samples, spec.calibration.max_length or length


def resolve_text(
    spec: CompressionSpec, *, on_cpu: bool, loading: Loading, longest: int | None = None
) -> ResolvedCalibration:
    """The calibration with its size, what calibrates beside a single `dataset`, and what judges.

    The same shares beside every text: of what the model generates, which is of all kinds that it has learned, of the
    built-in general text, at most as much as that has, and of repeated passages. A model that is read block by block
    would be read from disk for each token that it generates, so it gets general text in place of its own. A part of the
    general text gets no more of that: the same documents would calibrate and measure under two names. A method that
    fits nothing, one as published, and a request with a `self_generated` of 0 get nothing.

    Candidates are also judged on the general text, unless the request is for one text and nothing else, for a part of
    that one, or for sequences so long that the general text, which is not used at all then, has too few of them; and on
    repeated passages and short questions where repeated passages calibrate.
    """
    samples, length = usual_size(spec, on_cpu=on_cpu, longest=longest)
    asked, is_long = spec.calibration, length > JUDGING_TOKENS
    update: dict[str, object] = {"samples": samples, "max_length": length}
    if asked.judged_on is None:
        one_text = spec.one_text or asked.self_generated == 0 or asked.dataset in PARTS_OF_GENERAL or is_long
        update["judged_on"] = NO_OTHER_TEXT if one_text else GENERAL
    if asked.sources is None:
        own = general = repeated = 0.0
        if spec.mix_is_open:
            own, general, repeated = defaults.OWN_SHARE, defaults.GENERAL_SHARE, defaults.REPEATED_SHARE
            if loading is Loading.BLOCKWISE:
                own, general = 0.0, own + general
            if own + (asked.general or 0.0) > 1:  # the rest is of the text that is named
                own = 0.0
            general = min(general, FITTED_TOKENS / (samples * length))
            if asked.dataset in (GENERAL, *PARTS_OF_GENERAL) or is_long:
                general = 0.0
        shares = {"self_generated": own, "general": general, "repeated": repeated}
        update |= {name: share for name, share in shares.items() if getattr(asked, name) is None}
    found = ResolvedCalibration.model_validate(asked.model_dump() | update)
    texts = sum(not one.self_generated and not judge for one, judge in zip(found.mix, found.judges, strict=True))
    if texts > held_out_samples(samples):
        raise InvalidInput(
            f"of {samples} samples {held_out_samples(samples)} are held out, and each of the {texts} texts "
            f"needs one: ask for at least {defaults.HELD_OUT_SHARE * texts}",
            field="calibration.samples",
            value=samples,
        )
    return found
