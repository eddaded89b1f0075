"""Finds the files of a data set's repository that hold a config and a split.

The card (README.md) decides where it declares `configs:`; without it, the names of splits in the paths do. Only names
and sizes are used; no data file is opened.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import yaml

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.files import is_plain
from replaceme_core.hub.port import Hub, RepositoryFile, Snapshot

CARD = "README.md"
CARD_LIMIT = 1024 * 1024  # bytes
BYTE_LIMIT = 512 * 1024 * 1024  # a million tokens of calibration are about 4 MB of text
FORMATS = (".parquet", ".jsonl", ".json", ".csv", ".txt")  # the first one that the repository has is used
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NOT_DATA = frozenset({"dataset_info", "dataset_infos", "config", "state", "license", "readme", "requirements"})
_NAMED = 8  # the most files that an error names

_Patterns = Mapping[str, Sequence[str]]  # split -> patterns


def data_files_of(hub: Hub, snapshot: Snapshot, *, config: str | None, split: str) -> tuple[str, ...]:
    """The result of `choose_data_files` with the card of the repository."""
    card: str | None = None
    if any(file.path == CARD and file.size <= CARD_LIMIT for file in snapshot.files):
        card = (hub.download(snapshot, (CARD,)) / CARD).read_text(encoding="utf-8", errors="replace")
    return choose_data_files(snapshot.files, config=config, split=split, card=card)


def local_data_files(directory: Path, *, config: str | None, split: str) -> tuple[Path, ...]:
    """The same choice among the files of a downloaded snapshot, without the card. All files have one format."""
    files = [RepositoryFile(path=path, size=size) for path, size in _present(directory)]
    card = directory / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    chosen = choose_data_files(files, config=config, split=split, card=text)
    return tuple(directory / path for path in chosen if path != CARD)


def choose_data_files(
    files: Iterable[RepositoryFile],
    *,
    config: str | None,
    split: str,
    card: str | None = None,
    byte_limit: int = BYTE_LIMIT,
) -> tuple[str, ...]:
    """Sorted paths of one format, as many as fit into `byte_limit` bytes but at least one, and the card.

    `card` is the text of README.md. Raises `InvalidInput` with the configs, splits or files that exist.
    """
    sizes = {file.path: file.size for file in files if is_plain(file.path)}
    data = sorted(path for path in sizes if format_of(path))
    if not data:
        raise InvalidInput(
            f"the data set has no {', '.join(FORMATS)} files{_some(sizes)}; data sets that need a script are not "
            "supported",
            field="calibration.dataset",
        )
    declared = _declared(card) if card else {}
    if declared:
        matching = _by_card(data, declared, config=config, split=split)
    else:
        matching = _by_name(_in_config(data, config), split)
    suffix = next(suffix for suffix in FORMATS if any(format_of(path) == suffix for path in matching))
    chosen: list[str] = []
    left = byte_limit
    for path in (path for path in matching if format_of(path) == suffix):
        if chosen and sizes[path] > left:
            break
        chosen.append(path)
        left -= sizes[path]
    return (*chosen, CARD) if CARD in sizes else tuple(chosen)


def format_of(path: str) -> str | None:
    """Which of `FORMATS` a path has, compressed by gzip or not; `None` for a path that is not data."""
    name = PurePosixPath(path.removesuffix(".gz"))
    return name.suffix if name.suffix in FORMATS and name.stem.lower() not in _NOT_DATA else None


def _by_card(data: Sequence[str], declared: Mapping[str, _Patterns], *, config: str | None, split: str) -> list[str]:
    if config is None and len(declared) == 1:
        config = next(iter(declared))
    config = config or "default"
    if config not in declared:
        raise InvalidInput(
            f"name a config of the data set; there are {', '.join(sorted(declared))}",
            field="calibration.config",
            value=config,
        )
    patterns = declared[config]
    if split not in patterns:
        raise InvalidInput(
            f"config {config} has no split {split!r}; there are {', '.join(sorted(patterns))}",
            field="calibration.split",
            value=split,
        )
    expressions = [_expression(pattern) for pattern in patterns[split]]
    matching = [path for path in data if any(expression.fullmatch(path) for expression in expressions)]
    if not matching:
        raise InvalidInput(
            f"split {split!r} of config {config} is declared as {', '.join(patterns[split])}, and no data file "
            f"matches{_some(data)}",
            field="calibration.split",
            value=split,
        )
    return matching


def _in_config(data: Sequence[str], config: str | None) -> list[str]:
    """The paths of a config that no card declares: those in a folder of that name."""
    within = [path for path in data if config is None or config in PurePosixPath(path).parts[:-1]]
    if not within and config not in (None, "default"):
        folders = sorted({part for path in data for part in PurePosixPath(path).parts[:-1]})
        there_are = f"; there are {', '.join(folders[:_NAMED])}" if folders else ""
        raise InvalidInput(
            f"the data set has no config or folder {config!r}{there_are}", field="calibration.config", value=config
        )
    return within or list(data)


def _by_name(data: Sequence[str], split: str) -> list[str]:
    kind = next((name for name, words in _SPLITS.items() if split in words), None)
    if kind is None:  # an unusual split, such as train_sft
        matching = [path for path in data if _mentions(path, split)]
    else:
        matching = [path for path in data if _split_of(path) == kind]
    known = sorted({found for path in data if (found := _split_of(path)) is not None})
    if not matching and not known and kind == "train":
        return list(data)  # without any split in the names, all files are for training
    if not matching:
        there_are = f"there are {', '.join(known)}" if known else "no file is named after a split"
        raise InvalidInput(
            f"the data set has no split {split!r}: {there_are}{_some(data)}", field="calibration.split", value=split
        )
    return matching


def _split_of(path: str) -> str | None:
    """The usual split of a path, from the name of the file, else of the nearest folder that mentions one."""
    for part in reversed(PurePosixPath(path).parts):
        for kind, words in _SPLITS.items():
            if any(_mentions(part, word) for word in words):
                return kind
    return None


def _mentions(path: str, word: str) -> bool:
    """Whether `path` contains `word` as a whole word: "data/train_sft-00000.parquet" contains "train_sft"."""
    return f"_{_plain(word)}_" in f"_{_plain(path)}_"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def _declared(card: str) -> dict[str, _Patterns]:
    """Patterns by config and split, from `configs:` in the card's header; empty if that is not usable."""
    header = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", card.replace("\r\n", "\n"), re.DOTALL)
    try:
        fields = yaml.safe_load(header[1]) if header else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    configs = fields.get("configs") if isinstance(fields, dict) else None
    declared: dict[str, _Patterns] = {}
    for entry in configs if isinstance(configs, list) else ():
        if isinstance(entry, dict) and (patterns := _patterns(entry)):
            declared["default" if entry.get("default") is True else str(entry.get("config_name", "default"))] = patterns
            declared.setdefault(str(entry.get("config_name", "default")), patterns)
    return declared


def _patterns(entry: Mapping[str, object]) -> _Patterns:
    folder = f"{str(entry['data_dir']).strip('./')}/" if entry.get("data_dir") else ""
    patterns: dict[str, list[str]] = {}
    files = entry.get("data_files", "**" if folder else [])
    for item in files if isinstance(files, list) else [files]:
        split, paths = ("train", item) if not isinstance(item, dict) else (item.get("split", "train"), item.get("path"))
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                patterns.setdefault(str(split), []).append(folder + path.removeprefix("./"))
    return patterns


def _expression(pattern: str) -> re.Pattern[str]:
    """A glob pattern as a regular expression: `**` crosses folders, `*` and `?` do not."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(re.sub(r"\*\*/|\*\*|\*|\?|[^*?]+", lambda m: pieces.get(m[0]) or re.escape(m[0]), pattern))


def _some(paths: Iterable[str]) -> str:
    names = sorted(paths)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" (it has {', '.join(names[:_NAMED])}{more})" if names else " (it is empty)"


def _present(directory: Path) -> Iterable[tuple[str, int]]:
    """Path and size of the files under a snapshot. In a cache they are links to the blobs."""
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path.stat().st_size
