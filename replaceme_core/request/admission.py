"""Turns a request into the specification of a job: pins revisions, and refuses what cannot work before a job exists.

Reads only lists of files and `config.json` from the Hub, and imports no torch, so that the API can answer at once. A
result is published with the operator's token: a job creates repositories, and replaces none but earlier results of its
own owner, unless the operator allows more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from replaceme_core.errors import (
    CalibrationTooSmall,
    InvalidInput,
    LimitExceeded,
    RepositoryNotFound,
    UnknownRepository,
    UnsupportedFamily,
)
from replaceme_core.hardware import WorkerKind, worker_kind_of
from replaceme_core.hub.data_files import data_files_of
from replaceme_core.hub.model_config import ModelOutline, admit_config, as_prepared
from replaceme_core.hub.model_files import CONFIG, PREPROCESSOR, WEIGHTS_SUFFIX, check_listing
from replaceme_core.hub.port import REPOSITORY, ExistingOutput, Hub, RepositoryKind, Snapshot, read_hub_json
from replaceme_core.request.calibration import CalibrationSpec, MixedSource, errors_of, find_repeated
from replaceme_core.request.fields import FILE_PREFIX, ending_of
from replaceme_core.request.removal import check_removal
from replaceme_core.request.resolve import check_inputs, usual_size
from replaceme_core.request.spec import CompressionRequest, CompressionSpec, HealSpec, ModelRef, OutputSpec
from replaceme_core.request.tasks import check_tasks


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """`model_bytes` of all weights in the repository, calibration `tokens`; `None`: no limit.

    `kind` is that of the workers for a job that names no device; `None`: any.
    """

    model_bytes: int | None = None
    tokens: int | None = None
    kind: WorkerKind | None = None

    def check_model(self, snapshot: Snapshot) -> None:
        """Raises `LimitExceeded` (field `model`)."""
        size = sum(file.size for file in snapshot.files if file.path.endswith(WEIGHTS_SUFFIX) and "/" not in file.path)
        if self.model_bytes is not None and size > self.model_bytes:
            raise LimitExceeded(
                f"the weights of {snapshot.repo_id} are {size:,} bytes; this caller may use models of at most "
                f"{self.model_bytes:,}",
                field="model",
                value=snapshot.repo_id,
            )

    def check_tokens(self, spec: CompressionSpec, outline: ModelOutline | None = None) -> None:
        """Raises `LimitExceeded` (field `calibration.samples` or `heal.tokens`).

        Where any worker may take the job, that with more tokens counts. Without the `outline` of its model, this is
        taken to read text of any length.
        """
        kind = worker_kind_of(spec.compute.device) or self.kind
        longest, positions = (None, None) if outline is None else (outline.longest, outline.positions)
        samples, length = usual_size(spec, on_cpu=kind is WorkerKind.CPU, longest=longest, positions=positions)
        tokens = samples * length
        if self.tokens is not None and tokens > self.tokens:
            shorter = ", or a smaller max_length" if positions is None else ""
            raise LimitExceeded(
                f"{samples:,} samples are up to {tokens:,} tokens; this caller may use at most {self.tokens:,}: give "
                f"fewer samples{shorter}",
                field="calibration.samples",
                value=spec.calibration.samples,
            )
        if spec.heal is not None and self.tokens is not None and spec.heal.tokens > self.tokens:
            raise LimitExceeded(
                f"this caller may use at most {self.tokens:,} tokens: heal with fewer",
                field="heal.tokens",
                value=spec.heal.tokens,
            )


NO_SIZE_LIMITS = SizeLimits()


RESERVED_NAMESPACES = frozenset({"api", "buckets", "datasets", "kernels", "models", "spaces"})
"""The Hub begins other addresses with these."""


Names = TypeVar("Names", bound=Sequence[str] | None)


def check_namespaces(names: Names) -> Names:
    """`names` as they are. Raises `ValueError` for one that is no user or organisation of the Hub."""
    for name in () if names is None else names:
        if not REPOSITORY.fullmatch(f"{name}/x") or name.lower() in RESERVED_NAMESPACES:
            raise ValueError(f"expected users or organisations of the Hub, got {name!r}")
    return names


@dataclass(frozen=True, kw_only=True)
class OutputRules:
    """What an operator allows of outputs (settings of the same names), and which results are the caller's own.

    `namespaces`: where results may go, and first where those go that name no repository; `None`: that of the write
    token. `is_own` is asked with a job and the repository whose content it committed.
    """

    namespaces: tuple[str, ...] | None = None
    allow_overwrite: bool = False
    allow_publishing_private: bool = False
    is_own: Callable[[str, str], bool] = lambda job_id, repo_id: False

    def check_replacement(self, output: OutputSpec, existing: ExistingOutput) -> None:
        """Raises `InvalidInput` unless a result may take the place of what is there."""
        own = existing.job_id is not None and self.is_own(existing.job_id, existing.repo_id)
        if not (output.create_pr or existing.is_empty or own or (output.overwrite and self.allow_overwrite)):
            remedy = ", or say overwrite: true to replace all of it" if self.allow_overwrite else ""
            raise InvalidInput(
                f"{existing.repo_id} exists already and is not an earlier result of yours, or was changed since; "
                f"name another repository{remedy}",
                field="output.repo_id",
                value=existing.repo_id,
            )
        if output.private and existing.stays_public:
            raise InvalidInput(
                f"{existing.repo_id} exists and is public, so the result would be public too; name another repository, "
                "or say private: false",
                field="output.private",
                value=output.private,
            )


def check_output(output: OutputSpec, hub: Hub, *, rules: OutputRules, private_source: str | None) -> None:
    """Raises `InvalidInput` (field `output.repo_id`, `output.private`, ...) for what may not be.

    `output` has a name. `private_source` is a source of the result that is private on the Hub, if there is one.
    """
    assert output.repo_id is not None
    namespace, _, _ = output.repo_id.partition("/")
    if namespace.lower() in RESERVED_NAMESPACES:
        raise InvalidInput(
            f"{namespace!r} is no owner of repositories on the Hub; a result is a model, named as org/name",
            field="output.repo_id",
            value=output.repo_id,
        )
    owner = hub.namespace()  # also where others are allowed: it shows that there is a token that may write
    allowed = rules.namespaces or (owner,)
    if namespace not in allowed:
        raise InvalidInput(
            f"this service publishes under {' and '.join(allowed)} only; its operator can allow others with "
            "REPLACEME_OUTPUT_NAMESPACES",
            field="output.repo_id",
            value=output.repo_id,
        )
    if output.overwrite and not rules.allow_overwrite:
        raise InvalidInput(
            "this service replaces no repositories except your own earlier results, which needs no overwrite; leave it "
            "out, or ask the operator to set REPLACEME_ALLOW_OVERWRITE",
            field="output.overwrite",
            value=True,
        )
    if private_source is not None and not output.private and not rules.allow_publishing_private:
        raise InvalidInput(
            f"{private_source} is private, so the result must be too; leave out private: false, or ask the operator to "
            "set REPLACEME_ALLOW_PUBLISHING_PRIVATE",
            field="output.private",
            value=False,
        )
    if output.create_pr and not hub.has_pull_requests:
        raise InvalidInput(
            "a directory hub has no pull requests; leave create_pr out", field="output.create_pr", value=True
        )
    existing = hub.find_output(output.repo_id)
    if output.create_pr and existing is None:
        raise InvalidInput(
            f"there is no {output.repo_id} to make a pull request on; leave create_pr out to create it",
            field="output.create_pr",
            value=True,
        )
    if existing is not None:
        rules.check_replacement(output, existing)


_MAX_NAME_LENGTH = 96  # characters of a repository's name without its owner


@dataclass(frozen=True, kw_only=True)
class AdmittedModel:
    """A model at its commit, whose config was read and admitted."""

    snapshot: Snapshot
    outline: ModelOutline
    config: Mapping[str, object]


def resolve_request(
    request: CompressionRequest,
    hub: Hub,
    *,
    calibration_root: Path | None,
    job_id: str,
    rules: OutputRules,
    limits: SizeLimits = NO_SIZE_LIMITS,
    model: AdmittedModel | None = None,
    tasks_directory: str | None = None,
) -> CompressionSpec:
    """The specification of the job `job_id`: revisions are commit hashes, the output has a name, all blocks exist.

    `model` is given where it has been looked up before. `tasks_directory` has the data of tasks.

    Raises `InvalidInput` or a subclass for what the client can fix (field `model`, `drop`, `calibration`, `output`,
    `evaluation.tasks`) and for what is above `limits`, `AccessDenied` and `HubUnreachable`.
    """
    spec = request.to_spec()
    model = admit_model(find_model(spec.model, hub), hub) if model is None else model
    outline = model.outline
    limits.check_tokens(spec, outline)
    limits.check_model(model.snapshot)
    removed = check_removal(spec, outline)
    check_inputs(spec, outline)
    check_tasks(spec.evaluation.tasks, tasks_directory)
    calibration, heal, data_sets = resolve_texts(
        spec.calibration, spec.heal, lambda: hub, find_file=partial(find_text, root=calibration_root)
    )
    output = _name_output(spec, hub, rules, kept=outline.blocks - removed, blocks=outline.blocks, job_id=job_id)
    private = next((source.repo_id for source in (model.snapshot, *data_sets) if source.private), None)
    with _not_found_is_invalid("output.repo_id", str(output.repo_id)):
        check_output(output, hub, rules=rules, private_source=private)
    model_ref = ModelRef(repo_id=spec.model.repo_id, revision=model.snapshot.revision)
    return spec.model_copy(update={"model": model_ref, "calibration": calibration, "heal": heal, "output": output})


def find_model(model: ModelRef, hub: Hub) -> Snapshot:
    """The model at its commit. Raises `InvalidInput` if there is none, `AccessDenied` and `HubUnreachable`."""
    with _not_found_is_invalid("model", model.repo_id):
        return hub.resolve(model.repo_id, kind=RepositoryKind.MODEL, revision=model.revision)


def admit_model(snapshot: Snapshot, hub: Hub) -> AdmittedModel:
    """The model with its config. Raises `UnsupportedFamily`, `UnsafeModel` or `BrokenModel`."""
    if not snapshot.has(CONFIG):
        raise UnsupportedFamily(
            f"{snapshot.repo_id} has no {CONFIG}, so it is not a transformers model", value=snapshot.repo_id
        )
    check_listing(snapshot)
    config = read_hub_json(hub, snapshot, CONFIG)
    outline = admit_config(config)
    if outline.reads_images and snapshot.has(PREPROCESSOR):
        outline = as_prepared(outline, config, read_hub_json(hub, snapshot, PREPROCESSOR))
    return AdmittedModel(snapshot=snapshot, outline=outline, config=config)


def resolve_texts(
    calibration: CalibrationSpec,
    heal: HealSpec | None,
    hub: Callable[[], Hub],
    *,
    find_file: Callable[[str], object],
) -> tuple[CalibrationSpec, HealSpec | None, list[Snapshot]]:
    """The texts of both with their revisions, and the data sets on the Hub that they come from.

    `hub` is called where there are any; `find_file` is called with the name of each text in a file, and raises
    `InvalidInput` for one that is not there.
    """
    mix = calibration.mix
    found = [_resolve_source(source, hub, find_file) for source in mix]
    pinned = calibration.with_revisions([None if one is None else one.revision for one in found])
    twice = find_repeated(pinned.mix)
    if twice is not None:  # under two names of one revision; it could not be read back
        raise InvalidInput(
            f"{mix[twice].name} is given twice: both revisions are {pinned.mix[twice].revision}",
            field=mix[twice].name_field,
            value=mix[twice].name,
        )
    if heal is not None and heal.dataset is not None and heal.source is not None:
        found.append(_resolve_source(heal.source, hub, find_file))
        revision = None if found[-1] is None else found[-1].revision
        heal = heal.model_copy(update={"dataset": heal.dataset.model_copy(update={"revision": revision})})
    return pinned, heal, [one for one in found if one is not None]


def _resolve_source(source: MixedSource, hub: Callable[[], Hub], find_file: Callable[[str], object]) -> Snapshot | None:
    """A data set on the Hub at its commit; `None` for other sources. Raises `InvalidInput` for what does not exist."""
    with errors_of(source):
        if source.is_on_hub:
            with _not_found_is_invalid("calibration", source.name):
                snapshot = hub().resolve(source.name, kind=RepositoryKind.DATASET, revision=source.revision)
                data_files_of(hub(), snapshot, config=source.config, split=source.split)
            return snapshot
        for name in ("revision", "config"):
            if getattr(source, name) is not None:
                raise InvalidInput(
                    f"only a data set on the Hub has a {name}; leave it out with {source.name}",
                    field=f"calibration.{name}",
                    value=getattr(source, name),
                )
        if source.is_file:
            find_file(source.name)
        return None


def find_text(dataset: str, root: Path | None) -> Path:
    """The path of the text `file:NAME` under `root`, which may be a link: its name says the format.

    Raises `InvalidInput`, which reveals no other file there.
    """
    if root is None:
        raise InvalidInput(
            "this service has no directory for file: texts; its operator can set one with REPLACEME_CALIBRATION_ROOT",
            field="calibration",
            value=dataset,
        )
    missing = InvalidInput(
        f"{dataset} is not in the service's directory of calibration texts", field="calibration", value=dataset
    )
    try:
        home = root.expanduser().resolve(strict=True)
        named = home / dataset.removeprefix(FILE_PREFIX)
        path = named.resolve(strict=True)
        is_folder = dataset.endswith("/")
        if not path.is_relative_to(home) or not (path.is_dir() if is_folder else path.is_file()):
            raise missing
        is_empty = not is_folder and path.stat().st_size == 0  # that of a folder is what its file system likes
    except (OSError, RuntimeError, ValueError):  # missing, a loop of links, or an invalid name
        raise missing from None
    if is_empty:
        raise CalibrationTooSmall(f"{dataset} is empty", field="calibration", value=dataset)
    return named


def _name_output(
    spec: CompressionSpec, hub: Hub, rules: OutputRules, *, kept: int, blocks: int, job_id: str
) -> OutputSpec:
    output = spec.output
    if output.repo_id is None:
        size = "" if spec.searches else f"-{kept}of{blocks}"  # a search finds out how many stay
        ending = f"{size}{ending_of(job_id)}"
        name = spec.model.repo_id.rpartition("/")[2][: _MAX_NAME_LENGTH - len(ending)].rstrip("-.")
        is_own = spec.credential is not None  # the operator's first choice is no guess for the token of another
        owner = hub.namespace() if is_own or not rules.namespaces else rules.namespaces[0]
        if rules.namespaces and owner not in rules.namespaces:
            raise InvalidInput(
                f"this service publishes under {' and '.join(rules.namespaces)} only, and the token of this credential "
                f"belongs to {owner}: name a repository that it may write to",
                field="output.repo_id",
            )
        return output.model_copy(update={"repo_id": f"{owner}/{name}{ending}"})
    if output.repo_id.lower() == spec.model.repo_id.lower():  # names on the Hub are not case-sensitive
        raise InvalidInput(
            "the result would replace the source model; name another repository",
            field="output.repo_id",
            value=output.repo_id,
        )
    return output


@contextmanager
def _not_found_is_invalid(field: str, value: str) -> Iterator[None]:
    """Turn `RepositoryNotFound` into `UnknownRepository`: the client named it, so the request is wrong.

    An `InvalidInput` about the repository as a whole gets the field that names it.
    """
    try:
        yield
    except InvalidInput as error:
        if error.field is None:
            error.field, error.value = field, value
        raise
    except RepositoryNotFound as error:
        raise UnknownRepository(error.message, field=field, value=value) from error
