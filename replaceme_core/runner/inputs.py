"""The inputs of a run, its model and calibration texts: pinned to commits and checked before they are downloaded."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from replaceme_core.hub.data_files import data_files_of
from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.model_files import files_to_download
from replaceme_core.hub.port import Hub, RepositoryKind, Snapshot
from replaceme_core.request.admission import OutputRules, find_text, resolve_request
from replaceme_core.request.calibration import MixedSource, errors_of
from replaceme_core.request.removal import check_removal
from replaceme_core.request.spec import CompressionRequest, CompressionSpec, ModelRef

Advance = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """A model or a source of text. `path` is on this machine, the `names` of `snapshot` are to be downloaded.

    Neither is set for a built-in text and for what the model generates.
    """

    path: Path | None = None
    snapshot: Snapshot | None = None
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of what is to be downloaded."""
        if self.snapshot is None:
            return 0
        sizes = {file.path: file.size for file in self.snapshot.files}
        return sum(sizes[name] for name in self.names)


@dataclass(frozen=True, kw_only=True)
class PinnedInputs:
    """The files to download. `texts` has one entry for each source of the mix."""

    spec: CompressionSpec
    model: Pinned
    texts: tuple[Pinned, ...] = ()

    @property
    def files(self) -> tuple[Pinned, ...]:
        """All of them, the model first."""
        return (self.model, *self.texts)


@dataclass(frozen=True, kw_only=True)
class LocalInputs:
    """Where the files lie on this machine. They are read only. `calibration_paths` has one for each source."""

    model_directory: Path
    calibration_paths: tuple[Path | None, ...]


def resolve(
    spec: CompressionSpec,
    hub: Hub,
    *,
    calibration_root: Path | None,
    job_id: str,
    rules: OutputRules,
    tasks_directory: str | None = None,
) -> PinnedInputs:
    """Pin what is not pinned yet, and check model and text as far as possible without downloading them.

    Raises what `resolve_request` raises: the job may not have come through the API, and the Hub may have changed since.
    """
    request = CompressionRequest.model_construct(**{name: getattr(spec, name) for name in CompressionSpec.model_fields})
    resolved = resolve_request(
        request,
        hub,
        calibration_root=calibration_root,
        job_id=job_id,
        rules=rules,
        tasks_directory=tasks_directory,
    )
    return pin(resolved, hub, find_file=partial(find_text, root=calibration_root))


def pin(spec: CompressionSpec, hub: Hub, *, find_file: Callable[[str], Path]) -> PinnedInputs:
    """The files of a `spec` whose revisions are commits. `find_file` returns the path of a text "file:NAME"."""
    return PinnedInputs(
        spec=spec,
        model=pin_model(spec.model, hub),
        texts=tuple(pin_text(source, lambda: hub, find_file) for source in spec.calibration.mix),
    )


def pin_model(model: ModelRef, hub: Hub) -> Pinned:
    """The files of a model on the Hub."""
    snapshot = hub.resolve(model.repo_id, kind=RepositoryKind.MODEL, revision=model.revision)
    return Pinned(snapshot=snapshot, names=files_to_download(snapshot, hub))


def pin_text(source: MixedSource, hub: Callable[[], Hub], find_file: Callable[[str], Path]) -> Pinned:
    """The files of a source of text. Errors name the field of the request."""
    with errors_of(source):
        if source.is_file:
            return Pinned(path=find_file(source.name))
        if not source.is_on_hub:
            return Pinned()
        data = hub().resolve(source.name, kind=RepositoryKind.DATASET, revision=source.revision)
        return Pinned(snapshot=data, names=data_files_of(hub(), data, config=source.config, split=source.split))


@contextmanager
def held(pinned: Iterable[Pinned], hub: Callable[[], Hub]) -> Iterator[None]:
    """Keep the files on this machine for as long as a runner reads them. `hub` is called if any comes from there."""
    with ExitStack() as holds:
        for one in pinned:
            if one.snapshot is not None:
                holds.enter_context(hub().hold(one.snapshot))
        yield


def download(pinned: PinnedInputs, hub: Hub, *, advance: Advance) -> LocalInputs:
    """Download the files. `advance` is called with the part that is done, 0 to 1, and may raise to stop.

    The model is checked again as it is on the disk, because that is the one that will be loaded.
    """
    directory, *texts = fetch(pinned.files, lambda: hub, advance=advance, check=partial(_check_model, pinned.spec))
    assert directory is not None
    return LocalInputs(model_directory=directory, calibration_paths=tuple(texts))


def fetch(
    pinned: Sequence[Pinned],
    hub: Callable[[], Hub],
    *,
    advance: Advance,
    check: Callable[[Path], object],
) -> list[Path | None]:
    """Where each of them lies on this machine, `None` where there is nothing to read. `check` gets the first one."""
    sizes = [one.size for one in pinned]
    edges = [0.0, *(sum(sizes[: number + 1]) / max(sum(sizes), 1) for number in range(len(sizes)))]
    found: list[Path | None] = []
    for one, (start, end) in zip(pinned, pairwise(edges), strict=True):
        part = partial(_advance_part, advance, start, end)
        place = one.path if one.snapshot is None else hub().download(one.snapshot, one.names, advance=part)
        if not found:
            assert place is not None, "the first one is a model"
            check(place)
        found.append(place)
    advance(1.0)
    return found


def _check_model(spec: CompressionSpec, directory: Path) -> None:
    check_removal(spec, read_outline(directory))


def _advance_part(advance: Advance, start: float, end: float, part: float) -> None:
    advance(start + part * (end - start))
