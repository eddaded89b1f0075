"""The model and the texts that a call on this machine names: in a directory or a file, or on the Hub at a commit."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from replaceme_core.errors import AccessDenied, HubUnreachable, InvalidInput, RepositoryNotFound, UnknownRepository
from replaceme_core.hub.model_config import ModelOutline, read_outline
from replaceme_core.hub.model_files import files_to_download, image_files
from replaceme_core.hub.port import REPOSITORY, Hub
from replaceme_core.plan.plan import read_shape
from replaceme_core.request.admission import admit_model, find_model
from replaceme_core.request.fields import BUILTIN_PREFIX, BUILTIN_TEXTS, FILE_PREFIX
from replaceme_core.request.spec import ModelRef, ModelRequest
from replaceme_core.runner.inputs import Pinned
from replaceme_core.validation import problems

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], fields: Mapping[str, object]) -> M:
    """A `model` with these fields. Raises `InvalidInput` that names the first invalid one."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = problems(error.errors(), sent=fields, schema=model.model_json_schema())[0]
        raise InvalidInput(
            f"{first['field']}: {first['message']}", field=first["field"], value=first["value"]
        ) from error


def clean_name(directory: Path) -> str:
    """The name of a directory as the name of a repository.

    >>> clean_name(Path("/models/my model (v2).git"))
    'my-model-v2'
    """
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", directory.resolve().name.removesuffix(".git"))
    name = re.sub(r"([.-])[.-]+", r"\1", name)[:80].strip("._-")
    return name.removesuffix(".git").strip("._-") or "model"


@dataclass(frozen=True, kw_only=True)
class AdmittedModel:
    """A model that may be loaded, with the `name` that it was given: its files, which are in a directory or on the Hub.

    `ref` has the commit where it is on the Hub, `outline` what its config says.
    """

    name: str
    files: Pinned
    ref: ModelRef
    outline: ModelOutline


def admit(name: str | Path, hub: Callable[[], Hub]) -> AdmittedModel:
    """The model in a directory that exists, else `org/name` or `org/name@revision`; a `Path` is always a directory.

    Config, list of files and, on the Hub, the headers of the weights are checked before anything large is read. Raises
    `InvalidInput` and its subclasses, `AccessDenied` and `HubUnreachable`.
    """
    directory = Path(name).expanduser()
    if isinstance(name, Path) or directory.is_dir():
        ref = ModelRef(repo_id=f"local/{clean_name(directory)}")
        files = Pinned(path=directory.resolve())
        return AdmittedModel(name=str(name), files=files, ref=ref, outline=outline_of(directory))
    repository, _, revision = name.partition("@")
    if not REPOSITORY.fullmatch(repository):
        raise InvalidInput(
            f"{name} is not a directory, nor a model on the Hub, which is named as org/name or org/name@revision",
            field="model",
            value=name,
        )
    asked = validated(ModelRequest, {"repo_id": repository, "revision": revision or None})
    with looked_up(name):
        snapshot = find_model(ModelRef(repo_id=asked.repo_id, revision=asked.revision), hub())
    admitted = admit_model(snapshot, hub())
    names = files_to_download(snapshot, hub())
    read_shape(hub(), admitted, names)
    return AdmittedModel(
        name=name,
        files=Pinned(snapshot=snapshot, names=names),
        ref=ModelRef(repo_id=asked.repo_id, revision=snapshot.revision),
        outline=admitted.outline,
    )


def outline_of(directory: Path) -> ModelOutline:
    """The model in `directory` as its config describes it. Raises `InvalidInput`, before torch is loaded."""
    if not (directory / "config.json").is_file():
        what = "a model: it has no config.json" if directory.is_dir() else "a directory"
        raise InvalidInput(f"{directory} is not {what}", field="model", value=str(directory))
    return read_outline(directory)


@contextmanager
def looked_up(name: str) -> Iterator[None]:
    """Say that the name was looked up on the Hub, since it may be a misspelled directory, and with which token."""
    try:
        yield
    except (RepositoryNotFound, UnknownRepository, HubUnreachable) as error:
        error.args = (f"there is no directory {name} here, and on the Hub: {error.message}",)
        raise
    except AccessDenied as error:
        error.args = (f"{error.message}; the token of REPLACEME_HUB_READ_TOKEN is used, or none without it",)
        raise


TEXT_SUFFIXES = (".txt", ".jsonl")
Text = str | Path | Mapping[str, object]
"""The name of a text, or a source with its options as in `POST /jobs`."""


def named_texts(
    calibration: Text | Sequence[Text], healing: Text | None = None
) -> tuple[Mapping[str, object], Mapping[str, object] | None, Mapping[str, Path]]:
    """The fields `calibration` and `heal.dataset` of a request, in which files are `file:NAME`, and their paths.

    `calibration` is one text, several, or the field in its long form; files are named as files on this machine are. In
    the request a file has as much of its path as makes the names different. Raises `InvalidInput` for a file that
    cannot be read.
    """
    if isinstance(calibration, str | Path):
        calibration = {"dataset": calibration}
    body = calibration if isinstance(calibration, Mapping) else {"sources": calibration}
    several = body.get("sources")
    given = [*several] if isinstance(several, Sequence) else [body]
    given += [] if healing is None else [healing]
    sources = [one if isinstance(one, Mapping) else {"dataset": one} for one in given]
    texts = [one.get("dataset") for one in sources]
    paths = [find_text_file(text) if isinstance(text, str | Path) else None for text in texts]
    known = {path for path in paths if path is not None}
    depth = next(depth for depth in count(1) if len({_tail(path, depth) for path in known}) == len(known))
    names = {path: f"{FILE_PREFIX}{_tail(path, depth)}{'/' if path.is_dir() else ''}" for path in known}
    renamed = [
        one if path is None else {**one, "dataset": names[path]} for one, path in zip(sources, paths, strict=True)
    ]
    heal = None if healing is None else renamed.pop()
    named = {**body, "sources": renamed} if isinstance(several, Sequence) else renamed[0]
    return named, heal, {name: path for path, name in names.items()}


def _tail(path: Path, depth: int) -> str:
    return "/".join(path.parts[1:][-depth:])


def find_text_file(name: str | Path) -> Path | None:
    """The absolute path of the file that `name` names; `None` for a built-in text and a data set.

    That of a link where it is one: its name says the format, and what it leads to may have any. Raises `InvalidInput`.
    """
    text = str(name)
    if text.startswith(BUILTIN_PREFIX):
        return None
    path = Path(text.removeprefix(FILE_PREFIX)).expanduser()
    if path.is_dir() and image_files(path):
        return path.resolve()
    named_as_file = isinstance(name, Path) or text.startswith(FILE_PREFIX) or path.suffix in TEXT_SUFFIXES
    if not named_as_file and not path.is_file() and REPOSITORY.fullmatch(text):
        return None
    if not path.is_file():
        raise InvalidInput(
            f"there is no file {path}; expected a .txt or .jsonl file, a directory of images for a model of images, "
            f"{', '.join(BUILTIN_TEXTS)}, or a data set on the Hub as org/name",
            field="calibration",
            value=str(path),
        )
    if path.suffix not in TEXT_SUFFIXES:
        raise InvalidInput(f"{path} must end in .txt or .jsonl, which names its format", field="calibration")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="calibration", value=str(path)) from error
    return path.parent.resolve() / path.name
