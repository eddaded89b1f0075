"""The texts that a run on this machine is asked for: built in, in a file, or a data set of the Hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.port import REPOSITORY
from replaceme_core.request.fields import BUILTIN_PREFIX, BUILTIN_TEXTS, FILE_PREFIX

TEXT_SUFFIXES = (".txt", ".jsonl")
Text = str | Path | Mapping[str, object]
"""The name of a text, or a source with its options as in `POST /jobs`."""


@dataclass(frozen=True, kw_only=True)
class NamedTexts:
    """The field `calibration` of a request, in which files are named `file:NAME`, and the paths of these names."""

    calibration: Mapping[str, object]
    paths: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, calibration: Text | Sequence[Text]) -> "NamedTexts":
        """One text, several sources, or the field in its long form. Files are named as files on this machine are.

        In the request a file has as much of its path as makes the names different. Raises `InvalidInput` for a file
        that cannot be read, and for a built-in text that does not exist.
        """
        body = _in_long_form(calibration)
        given = body.get("sources")
        sources = [_as_source(one) for one in given] if isinstance(given, Sequence) else [body]
        names = [one.get("dataset") for one in sources]
        paths = [find_text_file(name) if isinstance(name, str | Path) else None for name in names]
        known = {path.resolve() for path in paths if path is not None}
        depth = next(depth for depth in count(1) if len({_tail(path, depth) for path in known}) == len(known))
        renamed = [
            one if path is None else {**one, "dataset": f"{FILE_PREFIX}{_tail(path.resolve(), depth)}"}
            for one, path in zip(sources, paths, strict=True)
        ]
        return cls(
            calibration={**body, "sources": renamed} if isinstance(given, Sequence) else renamed[0],
            paths={
                str(one["dataset"]): path.resolve()
                for one, path in zip(renamed, paths, strict=True)
                if path is not None
            },
        )

    def find_file(self, name: str) -> Path:
        """The path of the text `file:NAME`."""
        return self.paths[name]


def find_text_file(name: str | Path) -> Path | None:
    """The file that `name` names; `None` for a built-in text and a data set. Raises `InvalidInput`."""
    text = str(name)
    if text in BUILTIN_TEXTS:
        return None
    if text.startswith(BUILTIN_PREFIX):
        raise InvalidInput(
            f"there is no built-in text {text!r}; available: {', '.join(BUILTIN_TEXTS)}",
            field="calibration",
            value=text,
        )
    path = Path(text.removeprefix(FILE_PREFIX)).expanduser()
    named_as_file = isinstance(name, Path) or text.startswith(FILE_PREFIX) or path.suffix in TEXT_SUFFIXES
    if not named_as_file and not path.is_file() and REPOSITORY.fullmatch(text):
        return None
    _check_text(path)
    return path


def _check_text(path: Path) -> None:
    """Raises `InvalidInput` unless `path` is a readable text file."""
    if not path.is_file():
        raise InvalidInput(
            f"there is no file {path}; expected a .txt or .jsonl file, {', '.join(BUILTIN_TEXTS)}, or a data set on "
            "the Hub as org/name",
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


def _in_long_form(calibration: Text | Sequence[Text]) -> Mapping[str, object]:
    if isinstance(calibration, Mapping):
        return calibration
    return {"dataset": calibration} if isinstance(calibration, str | Path) else {"sources": calibration}


def _as_source(source: object) -> Mapping[str, object]:
    return source if isinstance(source, Mapping) else {"dataset": source}


def _tail(path: Path, depth: int) -> str:
    return "/".join(path.parts[1:][-depth:])
