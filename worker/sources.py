"""The inputs of a job, its model and its calibration text: pinned to commits and checked before they are downloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replaceme_core.admission.model_config import admit_config, admit_files
from replaceme_core.admission.output import OutputRules
from replaceme_core.admission.removal import check_removal
from replaceme_core.admission.resolve_request import find_text, resolve_request
from replaceme_core.hub.data_files import data_files_of
from replaceme_core.hub.files import read_json_file
from replaceme_core.hub.port import Hub, RepositoryKind, Snapshot
from replaceme_core.spec import CompressionRequest, CompressionSpec

CONFIG = "config.json"
FILE_PREFIX = "file:"
BUILTIN_PREFIX = "builtin:"

Advance = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class PinnedInputs:
    """The files to download. `text` is a local file; neither `data` nor `text` is set for a built-in text."""

    spec: CompressionSpec
    model: Snapshot
    model_files: tuple[str, ...]
    data: Snapshot | None
    data_files: tuple[str, ...]
    text: Path | None


@dataclass(frozen=True, kw_only=True)
class LocalInputs:
    """Where the files lie on this machine. They are read only."""

    model_directory: Path
    calibration_path: Path | None


def resolve(
    spec: CompressionSpec, hub: Hub, *, calibration_root: Path | None, job_id: str, rules: OutputRules
) -> PinnedInputs:
    """Pin what is not pinned yet, and check model and text as far as possible without downloading them.

    Raises what `resolve_request` raises: the job may not have come through the API, and the Hub may have changed since.
    """
    request = CompressionRequest.model_construct(**{name: getattr(spec, name) for name in CompressionSpec.model_fields})
    resolved = resolve_request(request, hub, calibration_root=calibration_root, job_id=job_id, rules=rules)
    model = hub.resolve(resolved.model.repo_id, kind=RepositoryKind.MODEL, revision=resolved.model.revision)
    data: Snapshot | None = None
    data_files: tuple[str, ...] = ()
    text: Path | None = None
    calibration = resolved.calibration
    if calibration.dataset.startswith(FILE_PREFIX):
        text = find_text(calibration.dataset, calibration_root)
    elif not calibration.dataset.startswith(BUILTIN_PREFIX):
        data = hub.resolve(calibration.dataset, kind=RepositoryKind.DATASET, revision=calibration.revision)
        data_files = data_files_of(hub, data, config=calibration.config, split=calibration.split)
    model_files = admit_files(tuple(file.path for file in model.files))
    return PinnedInputs(
        spec=resolved, model=model, model_files=model_files, data=data, data_files=data_files, text=text
    )


def resolve_model(spec: CompressionSpec, hub: Hub) -> PinnedInputs:
    """The model alone, of a `spec` that another worker has resolved and checked."""
    model = hub.resolve(spec.model.repo_id, kind=RepositoryKind.MODEL, revision=spec.model.revision)
    files = admit_files(tuple(file.path for file in model.files))
    return PinnedInputs(spec=spec, model=model, model_files=files, data=None, data_files=(), text=None)


def download(pinned: PinnedInputs, hub: Hub, *, advance: Advance) -> LocalInputs:
    """Download the files. `advance` is called with the part that is done, 0 to 1, and may raise to stop.

    The model's config is checked again as it is on the disk, because that is the one that will be loaded.
    """
    sizes = {file.path: file.size for file in pinned.model.files}
    model_bytes = sum(sizes[path] for path in pinned.model_files)
    data_sizes = {file.path: file.size for file in pinned.data.files} if pinned.data is not None else {}
    data_bytes = sum(data_sizes[path] for path in pinned.data_files)
    model_share = model_bytes / max(model_bytes + data_bytes, 1)
    model_directory = hub.download(pinned.model, pinned.model_files, advance=lambda part: advance(part * model_share))
    check_removal(pinned.spec, admit_config(read_json_file(model_directory / CONFIG, CONFIG)))
    calibration_path = pinned.text
    if pinned.data is not None:
        calibration_path = hub.download(
            pinned.data, pinned.data_files, advance=lambda part: advance(model_share + part * (1 - model_share))
        )
    advance(1.0)
    return LocalInputs(model_directory=model_directory, calibration_path=calibration_path)
