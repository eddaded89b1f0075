"""Finds the files of a data set's repository that hold a config and a split.

The card (README.md) decides where it declares `configs:`; without it, the names of splits in the paths do. Only names
and sizes are used; no data file is opened.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import yaml

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.port import Hub, RepositoryFile, Snapshot
from replaceme_core.wording import shorten

CARD = "README.md"
LONGEST_HEADER = 32 * 1024
"""Characters, and bytes too."""
MOST_LINES = 1000
MOST_ENTRIES = 6000
"""Names, values, and beginnings and ends of lists. About five for each line that declares a split."""
MOST_LEVELS = 32

Value = str | list["Value"] | dict[str, "Value"]


def read_card(path: Path) -> str:
    """The beginning of a card, with all of its header that is read."""
    with path.open("rb") as file:
        return file.read(LONGEST_HEADER + 1024).decode("utf-8", errors="replace")


def header_of(card: str) -> dict[str, Value]:
    """The fields in the header of a card; empty if it has none, or one that is not YAML of the simple kind.

    All values are text: `true` is "true", and `null` is "". Raises `InvalidInput` for a header that is too long or too
    deep, or that has anchors, aliases or tags.
    """
    text = _between_dashes(card.removeprefix("\ufeff"))
    if text is None:
        return {}
    try:
        fields = _first_document(text)
    except (yaml.YAMLError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _between_dashes(card: str) -> str | None:
    first, *lines = card[: LONGEST_HEADER + 1024].split("\n")
    if first.rstrip() != "---":
        return None
    end = next((number for number, line in enumerate(lines) if line.rstrip() == "---"), None)
    if end is None and len(card.encode()) <= LONGEST_HEADER:
        return None
    text = "\n".join(lines[:end])
    if len(text.encode()) > LONGEST_HEADER:
        raise _refused(f"longer than {LONGEST_HEADER:,} bytes")
    if end is not None and end > MOST_LINES:
        raise _refused(f"longer than {MOST_LINES:,} lines")
    return text + "\n"


class _Loader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    """A loader for which all values are text. The C loader is ten times as fast, and in all wheels."""


_NULL = "tag:yaml.org,2002:null"
_Loader.add_implicit_resolver(_NULL, re.compile("~|null|Null|NULL"), ["~", "n", "N"])
_Loader.add_constructor(_NULL, lambda loader, node: "")


def _first_document(text: str) -> Value:
    """Raises `InvalidInput` as `header_of`, the errors of the parser, and `ValueError` for half a character."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if number > MOST_ENTRIES:
            raise _refused(f"of more than {MOST_ENTRIES:,} names and values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise _refused("with anchors, aliases or tags")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_LEVELS:
            raise _refused(f"nested more than {MOST_LEVELS} deep")
        if isinstance(event, yaml.ScalarEvent):
            event.value.encode()
        if isinstance(event, yaml.DocumentEndEvent):
            break
    first: Value = next(yaml.load_all(text, Loader=_Loader), "")
    return first


def _refused(what: str) -> InvalidInput:
    return InvalidInput(
        f"{CARD} of the data set begins with a header {what}, which is not read; use another data set, or give the "
        "text as a file",
        field="calibration.dataset",
    )


CARD_LIMIT = 1024 * 1024  # bytes; a larger one is not downloaded
BYTE_LIMIT = 512 * 1024 * 1024  # a million tokens of calibration are about 4 MB of text
LARGEST_FILE = 8 * 1024**3
FORMATS = (".parquet", ".jsonl", ".json", ".csv", ".txt")  # the first one that the repository has is used
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NOT_DATA = frozenset({"dataset_info", "dataset_infos", "config", "state", "license", "readme", "requirements"})
MOST_STEPS = 200_000_000
"""Characters of all patterns times those of all names: at worst about two seconds."""
_NOTHING = re.compile("(?!)")
_NAMED = 8  # the most names in a message
_SHORT = 100  # the most characters of one of them

_Patterns = Mapping[str, Sequence[str]]  # split -> patterns
_Config = _Patterns | PurePosixPath  # or a folder, in which the names of files say their splits


def data_files_of(hub: Hub, snapshot: Snapshot, *, config: str | None, split: str) -> tuple[str, ...]:
    """The result of `choose_data_files` with the card of the repository."""
    card: str | None = None
    if _has_card(snapshot.sizes):
        with hub.hold(snapshot):
            card = read_card(hub.download(snapshot, (CARD,)) / CARD)
    return choose_data_files(snapshot.files, config=config, split=split, card=card)


def local_data_files(directory: Path, *, config: str | None, split: str) -> tuple[Path, ...]:
    """The same choice among the files of a downloaded snapshot, without the card. All files have one format."""
    files = [
        RepositoryFile(path=path.relative_to(directory).as_posix(), size=path.stat().st_size)
        for path in directory.rglob("*")
        if path.is_file()  # in a cache they are links to the blobs
    ]
    card = read_card(directory / CARD) if _has_card({file.path: file.size for file in files}) else None
    chosen = choose_data_files(files, config=config, split=split, card=card)
    return tuple(directory / path for path in chosen if path != CARD)


def choose_data_files(
    files: Iterable[RepositoryFile],
    *,
    config: str | None,
    split: str,
    card: str | None = None,
) -> tuple[str, ...]:
    """Sorted paths of one format, as many as fit into `BYTE_LIMIT` but at least one, and the card.

    `card` is the text of README.md. Raises `InvalidInput` with the configs, splits or files that exist.
    """
    sizes = {file.path: file.size for file in files}
    formats = {path: found for path in sorted(sizes) if (found := format_of(path))}
    data = list(formats)
    if not data:
        raise InvalidInput(
            f"the data set has no {', '.join(FORMATS)} files{_some(sizes)}; data sets that need a script are not "
            "supported",
            field="calibration.dataset",
        )
    declared = _declared(card) if card else {}
    within = _in_declared(declared, data, config, split) if declared else _by_name(_in_config(data, config), split)
    suffix = min((formats[path] for path in within), key=FORMATS.index)
    chosen: list[str] = []
    left = BYTE_LIMIT
    for path in (path for path in within if formats[path] == suffix):
        if chosen and sizes[path] > left:
            break
        chosen.append(path)
        left -= sizes[path]
    if sizes[chosen[0]] > LARGEST_FILE:
        raise InvalidInput(
            f"{shorten(chosen[0], _SHORT)} has {sizes[chosen[0]]:,} bytes; at most {LARGEST_FILE:,} are read: name "
            "another split or config, or use a data set in smaller files",
            field="calibration.split",
            value=split,
        )
    return (*chosen, CARD) if _has_card(sizes) else tuple(chosen)


def _has_card(sizes: Mapping[str, int]) -> bool:
    """Whether there is a card that is read."""
    return sizes.get(CARD, CARD_LIMIT + 1) <= CARD_LIMIT


def format_of(path: str) -> str | None:
    """Which of `FORMATS` a path has, compressed by gzip or not; `None` for a path that is not data."""
    name = PurePosixPath(path.removesuffix(".gz"))
    return name.suffix if name.suffix in FORMATS and name.stem.lower() not in _NOT_DATA else None


def _in_declared(declared: Mapping[str, _Config], data: Sequence[str], config: str | None, split: str) -> Sequence[str]:
    """The paths of a config that a card declares."""
    if config is None and len(declared) == 1:
        config = next(iter(declared))
    config = config or "default"
    if config not in declared:
        raise InvalidInput(
            f"name a config of the data set; there are {_few(declared)}", field="calibration.config", value=config
        )
    patterns = declared[config]
    asked: Sequence[str]
    if isinstance(patterns, PurePosixPath):  # a folder of which the card says no more
        start = f"{patterns}/"
        within = [path.removeprefix(start) for path in data if path.startswith(start)]
        asked, found = [start], [start + path for path in _by_name(within, split)]
    elif split in patterns:
        asked, found = patterns[split], _matching(patterns[split], data)
    else:
        raise InvalidInput(
            f"config {shorten(config, _SHORT)} has no split {split!r}; there are {_few(patterns)}",
            field="calibration.split",
            value=split,
        )
    if not found:
        raise InvalidInput(
            f"split {split!r} is declared as {_few(asked)}, and no data file matches{_some(data)}",
            field="calibration.split",
            value=split,
        )
    return found


def _in_config(data: Sequence[str], config: str | None) -> list[str]:
    """The paths of a config that no card declares: those in a folder of that name."""
    within = [path for path in data if config is None or config in PurePosixPath(path).parts[:-1]]
    if not within and config not in (None, "default"):
        folders = sorted({part for path in data for part in PurePosixPath(path).parts[:-1]})
        there_are = f"; there are {_few(folders)}" if folders else ""
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
        mentioned = set(re.split("[^a-z]+", part.lower()))  # digits divide words: train1.csv
        for kind, words in _SPLITS.items():
            if not mentioned.isdisjoint(words):
                return kind
    return None


def _mentions(path: str, word: str) -> bool:
    """Whether `path` contains `word` as a whole word: "data/train_sft-00000.parquet" contains "train_sft"."""
    return f"_{_plain(word)}_" in f"_{_plain(path)}_"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def _declared(card: str) -> dict[str, _Config]:
    """What each config has, from `configs:` in the card's header; empty if that is not usable."""
    configs = header_of(card).get("configs")
    declared: dict[str, _Config] = {}
    for entry in configs if isinstance(configs, list) else ():
        if isinstance(entry, dict) and (patterns := _patterns(entry)):
            name = _text(entry, "config_name", "default")
            declared["default" if _text(entry, "default", "").lower() == "true" else name] = patterns
            declared.setdefault(name, patterns)
    return declared


def _patterns(entry: Mapping[str, Value]) -> _Config:
    folder = _text(entry, "data_dir", "").strip("./")
    folder = f"{folder}/" if folder else ""
    patterns: dict[str, list[str]] = {}
    files = entry.get("data_files") or []
    if folder and not files:
        return PurePosixPath(folder)
    for item in files if isinstance(files, list) else [files]:
        split, paths = (_text(item, "split", "train"), item.get("path")) if isinstance(item, dict) else ("train", item)
        for path in paths if isinstance(paths, list) else [paths]:
            if isinstance(path, str):
                patterns.setdefault(split, []).append(folder + path.removeprefix("./").rstrip("/"))
    return patterns


def _matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that match one of the patterns of a card: `*`, `?` and `[a-z]` within a folder, `**` for any folders.

    A stranger wrote both, and the work is at most the product of their lengths: no part of a match is tried twice,
    neither here nor in the expressions of `fnmatch`. Raises `InvalidInput` where that is too much, and for a pattern in
    which `**` is only a part of a name.
    """
    patterns = list(dict.fromkeys(patterns))
    if sum(map(len, patterns)) * sum(map(len, names)) > MOST_STEPS:
        raise InvalidInput(
            "the patterns in the card of the data set are too many or too long for its files; name another config or "
            "split, or give the text as a file",
            field="calibration.dataset",
        )
    compiled = [_parts(pattern) for pattern in patterns]
    return [name for name in names if any(_fits(parts, name.split("/")) for parts in compiled)]


def _parts(pattern: str) -> list[re.Pattern[str] | None]:
    """An expression for each part between slashes; `None` for `**`."""
    parts = pattern.split("/")
    if any("**" in part and part != "**" for part in parts):
        raise InvalidInput(
            f"the pattern {shorten(pattern, _SHORT)!r} in the card of the data set has ** as a part of a name; it can "
            "stand for whole folders only",
            field="calibration.dataset",
        )
    return [None if part == "**" else re.compile(fnmatch.translate(part)) for part in parts]


def _fits(parts: Sequence[re.Pattern[str] | None], folders: Sequence[str]) -> bool:
    """Whether the parts of a name match those of a pattern. If not, only the last `**` can take one folder more."""
    at = part = 0
    retry: tuple[int, int] | None = None
    while at < len(folders):
        expression = parts[part] if part < len(parts) else _NOTHING
        if expression is None:
            retry, part = (at, part), part + 1
        elif expression.match(folders[at]):
            at, part = at + 1, part + 1
        elif retry is not None:
            at, part = retry[0] + 1, retry[1] + 1
            retry = at, retry[1]
        else:
            return False
    return all(one is None for one in parts[part:])


def _text(entry: Mapping[str, Value], name: str, otherwise: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) and value else otherwise


def _few(names: Iterable[str]) -> str:
    """The first names in the order of the alphabet, for a message."""
    every = sorted(names)
    more = f" and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return f"{', '.join(shorten(name, _SHORT) for name in every[:_NAMED])}{more}"


def _some(paths: Iterable[str]) -> str:
    names = list(paths)
    return f" (it has {_few(names)})" if names else " (it is empty)"
