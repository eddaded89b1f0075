"""The inputs of a run, its model and calibration texts: pinned to commits and checked before they are downloaded."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from replaceme_core.hub.data_files import data_files_of
from replaceme_core.hub.model_files import files_to_download
from replaceme_core.hub.port import Hub, RepositoryKind, Snapshot
from replaceme_core.request.admission import OutputRules, find_text, resolve_request
from replaceme_core.request.calibration import MixedSource, errors_of
from replaceme_core.request.spec import CompressionRequest, CompressionSpec

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
        return 0 if self.snapshot is None else sum(self.snapshot.sizes[name] for name in self.names)


def resolve(
    spec: CompressionSpec,
    hub: Hub,
    *,
    calibration_root: Path | None,
    job_id: str,
    rules: OutputRules,
    tasks_directory: str | None = None,
) -> tuple[CompressionSpec, tuple[Pinned, ...]]:
    """Pin what is not pinned yet, and check model and text as far as possible without downloading them.

    Returns the specification, and what is read: the model, and one entry for each source of the mix.
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
    snapshot = hub.resolve(resolved.model.repo_id, kind=RepositoryKind.MODEL, revision=resolved.model.revision)
    model = Pinned(snapshot=snapshot, names=files_to_download(snapshot, hub))
    find_file = partial(find_text, root=calibration_root)
    texts = (pin_text(source, lambda: hub, find_file) for source in resolved.texts)
    return resolved, (model, *texts)


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


def fetch(
    pinned: Sequence[Pinned],
    hub: Callable[[], Hub],
    *,
    advance: Advance,
    check: Callable[[Path], object],
) -> list[Path | None]:
    """Where each of them lies on this machine, which is read only; `None` where there is nothing to read.

    `advance` is called with the part that is done, 0 to 1, and may raise to stop. `check` gets the first one, the
    model, as it is on the disk, because that is the one that will be loaded.
    """
    found: list[Path | None] = []
    done, total = 0, max(1, sum(one.size for one in pinned))
    for one in pinned:

        def part(fraction: float, *, before: int = done, size: int = one.size) -> None:
            advance((before + size * fraction) / total)

        place = one.path if one.snapshot is None else hub().download(one.snapshot, one.names, advance=part)
        if not found:
            assert place is not None, "the first one is a model"
            check(place)
        found.append(place)
        done += one.size
    advance(1.0)
    return found
