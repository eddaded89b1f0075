"""The models that a run on this machine is asked for: a directory, or a repository of the Hub at a commit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from replaceme_core.errors import AccessDenied, HubUnreachable, InvalidInput, UnknownRepository
from replaceme_core.hub.model_config import ModelOutline, read_outline
from replaceme_core.hub.model_files import files_to_download
from replaceme_core.hub.port import REPOSITORY, Hub
from replaceme_core.local.requests import clean_name, validated
from replaceme_core.plan.plan import read_shape
from replaceme_core.request.admission import admit_model, find_model
from replaceme_core.request.spec import ModelRef, ModelRequest
from replaceme_core.runner.inputs import Pinned

REVISION = "@"
"""Between the name of a repository and a branch, tag or commit of it."""
TOKEN_SETTING = "REPLACEME_HUB_READ_TOKEN"


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model as it was named: in `directory`, or `None`: the repository `ref` of the Hub."""

    name: str
    directory: Path | None
    ref: ModelRef

    @classmethod
    def of(cls, name: str | Path) -> "NamedModel":
        """A directory that exists, else `org/name` or `org/name@revision`; a `Path` is always a directory.

        Raises `InvalidInput` for what is none of these.
        """
        directory = Path(name).expanduser()
        if isinstance(name, Path) or directory.is_dir():
            ref = ModelRef(repo_id=f"local/{clean_name(directory)}")
            return cls(name=str(name), directory=directory, ref=ref)
        repository, _, revision = name.partition(REVISION)
        if not REPOSITORY.fullmatch(repository):
            raise InvalidInput(
                f"{name} is not a directory, nor a model on the Hub, which is named as org/name or org/name@revision",
                field="model",
                value=name,
            )
        asked = validated(ModelRequest, {"repo_id": repository, "revision": revision or None})
        return cls(name=name, directory=None, ref=ModelRef(repo_id=asked.repo_id, revision=asked.revision))


@dataclass(frozen=True, kw_only=True)
class AdmittedFiles:
    """A model that may be loaded: its files, where it is on the Hub at a commit, and what its config says."""

    files: Pinned
    ref: ModelRef
    outline: ModelOutline

    @property
    def is_gated(self) -> bool:
        return self.files.snapshot is not None and self.files.snapshot.gated


def admit(model: NamedModel, hub: Callable[[], Hub]) -> AdmittedFiles:
    """Check config, list of files and, on the Hub, the headers of the weights, before anything large is read.

    Raises `InvalidInput` and its subclasses, `AccessDenied` and `HubUnreachable`.
    """
    if model.directory is not None:
        directory = model.directory.resolve()
        return AdmittedFiles(files=Pinned(path=directory), ref=model.ref, outline=outline_of(model.directory))
    with _looked_up(model.name):
        snapshot = find_model(model.ref, hub())
    admitted = admit_model(snapshot, hub())
    names = files_to_download(snapshot, hub())
    read_shape(hub(), admitted, names)
    return AdmittedFiles(
        files=Pinned(snapshot=snapshot, names=names),
        ref=ModelRef(repo_id=model.ref.repo_id, revision=snapshot.revision),
        outline=admitted.outline,
    )


def outline_of(directory: Path) -> ModelOutline:
    """The model in `directory` as its config describes it. Raises `InvalidInput`, before torch is loaded."""
    if not (directory / "config.json").is_file():
        what = "a model: it has no config.json" if directory.is_dir() else "a directory"
        raise InvalidInput(f"{directory} is not {what}", field="model", value=str(directory))
    return read_outline(directory)


@contextmanager
def _looked_up(name: str) -> Iterator[None]:
    """Say that the name was looked up on the Hub, since it may be a misspelled directory, and with which token."""
    try:
        yield
    except (UnknownRepository, HubUnreachable) as error:
        error.args = (f"there is no directory {name} here, and on the Hub: {error.message}",)
        raise
    except AccessDenied as error:
        error.args = (f"{error.message}; the token of {TOKEN_SETTING} is used, or none without it",)
        raise
