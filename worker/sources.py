"""The inputs of a job, its model and calibration texts: pinned to commits and checked before they are downloaded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from replaceme_core.admission.model_directory import read_outline
from replaceme_core.admission.output import OutputRules
from replaceme_core.admission.removal import check_removal
from replaceme_core.admission.repository import files_to_download
from replaceme_core.admission.resolve_request import find_text, resolve_request
from replaceme_core.calibration_spec import MixedSource, errors_of
from replaceme_core.hub.data_files import data_files_of
from replaceme_core.hub.port import Hub, RepositoryKind, Snapshot
from replaceme_core.spec import CompressionRequest, CompressionSpec

Advance = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class PinnedText:
    """One source of calibration text. `file` is on this machine, the `names` of `data` are to be downloaded; neither
    is set for a built-in text and for what the model generates."""

    file: Path | None = None
    data: Snapshot | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PinnedInputs:
    """The files to download. `texts` has one entry for each source of the mix."""

    spec: CompressionSpec
    model: Snapshot
    model_files: tuple[str, ...]
    texts: tuple[PinnedText, ...]


@dataclass(frozen=True, kw_only=True)
class LocalInputs:
    """Where the files lie on this machine. They are read only. `calibration_paths` has one for each source."""

    model_directory: Path
    calibration_paths: tuple[Path | None, ...]


def resolve(
    spec: CompressionSpec, hub: Hub, *, calibration_root: Path | None, job_id: str, rules: OutputRules
) -> PinnedInputs:
    """Pin what is not pinned yet, and check model and text as far as possible without downloading them.

    Raises what `resolve_request` raises: the job may not have come through the API, and the Hub may have changed since.
    """
    request = CompressionRequest.model_construct(**{name: getattr(spec, name) for name in CompressionSpec.model_fields})
    resolved = resolve_request(request, hub, calibration_root=calibration_root, job_id=job_id, rules=rules)
    model = hub.resolve(resolved.model.repo_id, kind=RepositoryKind.MODEL, revision=resolved.model.revision)
    texts = tuple(_pin_text(source, hub, calibration_root) for source in resolved.calibration.mix)
    model_files = files_to_download(model, hub)
    return PinnedInputs(spec=resolved, model=model, model_files=model_files, texts=texts)


def _pin_text(source: MixedSource, hub: Hub, root: Path | None) -> PinnedText:
    with errors_of(source):
        if source.is_file:
            return PinnedText(file=find_text(source.name, root))
        if not source.is_on_hub:
            return PinnedText()
        data = hub.resolve(source.name, kind=RepositoryKind.DATASET, revision=source.revision)
        return PinnedText(data=data, names=data_files_of(hub, data, config=source.config, split=source.split))


def resolve_model(spec: CompressionSpec, hub: Hub) -> PinnedInputs:
    """The model alone, of a `spec` that another worker has resolved and checked."""
    model = hub.resolve(spec.model.repo_id, kind=RepositoryKind.MODEL, revision=spec.model.revision)
    files = files_to_download(model, hub)
    return PinnedInputs(spec=spec, model=model, model_files=files, texts=())


@contextmanager
def held(pinned: PinnedInputs, hub: Hub) -> Iterator[None]:
    """Keep the files on this machine for as long as a runner reads them."""
    with ExitStack() as holds:
        for snapshot in (pinned.model, *(text.data for text in pinned.texts if text.data is not None)):
            holds.enter_context(hub.hold(snapshot))
        yield


def download(pinned: PinnedInputs, hub: Hub, *, advance: Advance) -> LocalInputs:
    """Download the files. `advance` is called with the part that is done, 0 to 1, and may raise to stop.

    The model is checked again as it is on the disk, because that is the one that will be loaded.
    """
    wanted = [(pinned.model, pinned.model_files)]
    wanted += [(text.data, text.names) for text in pinned.texts if text.data is not None]
    sizes = [_bytes(snapshot, names) for snapshot, names in wanted]
    edges = [0.0, *(sum(sizes[: number + 1]) / max(sum(sizes), 1) for number in range(len(sizes)))]
    parts = [partial(_advance_part, advance, start, end) for start, end in pairwise(edges)]
    directories = (hub.download(*one, advance=part) for one, part in zip(wanted, parts, strict=True))
    model_directory = next(directories)
    check_removal(pinned.spec, read_outline(model_directory))
    paths = tuple(text.file if text.data is None else next(directories) for text in pinned.texts)
    advance(1.0)
    return LocalInputs(model_directory=model_directory, calibration_paths=paths)


def _bytes(snapshot: Snapshot, names: Sequence[str]) -> int:
    sizes = {file.path: file.size for file in snapshot.files}
    return sum(sizes[name] for name in names)


def _advance_part(advance: Advance, start: float, end: float, part: float) -> None:
    advance(start + part * (end - start))
