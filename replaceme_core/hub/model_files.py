"""Which files of a model are its weights, and which others are used, on the Hub and in a directory. No other is opened.

Header check, digest, whole and block-wise loading and copying use these lists. Names and links are untrusted input: a
stranger wrote them, and other models lie beside this one. Imports no torch.
"""

import errno
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from replaceme_core.errors import BrokenModel, InvalidInput, UnsafeModel
from replaceme_core.hub.files import read_json_file
from replaceme_core.hub.port import Hub, Snapshot, read_hub_json
from replaceme_core.hub.safetensors_header import TensorPlace, read_headers
from replaceme_core.wording import shorten

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
"""How images are prepared."""
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHTS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
CARRIED_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "emoji.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    PREPROCESSOR,
    "video_preprocessor_config.json",
    "processor_config.json",
)
"""Files that are copied unchanged from the source model to the smaller one, as are terms and chat templates."""
CARD = "README.md"
WRITTEN_FILES = (CONFIG, "generation_config.json", CARD)
"""Files that are written anew for the smaller model."""
_SIDE_FILES = (*WRITTEN_FILES, *CARRIED_FILES)
_TEMPLATES = "additional_chat_templates"
"""The folder of chat templates that a user chooses by name, such as for tools. No other folder is read."""
_TEMPLATE = re.compile(rf"{_TEMPLATES}/[\w. -]+\.jinja", re.ASCII)
_TERMS = re.compile(
    r"(licen[cs]e|notices?|copying|copyright|third[-_ ]?party|(acceptable[-_ ]?)?use[-_ ]?policy|terms)"
    r"([-_. ][\w. -]*)?",
    re.IGNORECASE | re.ASCII,
)
_TERMS_SUFFIXES = ("", ".txt", ".md", ".rst", ".pdf", ".html")
_MOST_OF_A_KIND = 32
_MEGABYTE = 2**20
_LARGEST = {CONFIG: _MEGABYTE, "tokenizer.json": 64 * _MEGABYTE, INDEX: 16 * _MEGABYTE}
_LARGEST_OTHER = 8 * _MEGABYTE
_NAMED = 3  # the most files that an error names


def choose_weights(names: Collection[str], index: Mapping[str, object] | None) -> tuple[str, ...]:
    """The weight files among the `names` at the top level of a model, sorted.

    `index` is the content of `model.safetensors.index.json`, `None` if there is none. Raises `UnsafeModel` if the
    weights are not safetensors or the index names a file elsewhere, and `BrokenModel` if it names one that is missing.
    """
    if index is None:
        if SINGLE not in names:
            raise _no_weights(names)
        return (SINGLE,)
    weight_map = index.get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(one, str) for one in weight_map.values())
    ):
        raise BrokenModel(f"{INDEX} has no usable weight_map", value=INDEX)
    named = sorted(set(weight_map.values()))
    for name in named:
        if not _is_weights(name):
            raise UnsafeModel(
                f"{INDEX} names {shorten(name, 100)!r}; weights must be files at the top level of the model, with "
                f"plain names that end in {WEIGHTS_SUFFIX}",
                value=name,
            )
    missing = [name for name in named if name not in names]
    if missing:
        raise BrokenModel(
            f"the index names {shorten(missing[0], 100)}, which is missing; add it, or use the index that was saved "
            "with these weights",
            value=missing[:_NAMED],
        )
    if SINGLE in names and named != [SINGLE]:
        raise UnsafeModel(
            f"the model has {SINGLE} and an index that names other files ({shorten(', '.join(named[:_NAMED]), 200)}), "
            "so it is not clear which are its weights; remove one of them",
            value=INDEX,
        )
    return tuple(named)


def is_terms(name: str) -> bool:
    """Whether a file at the top level holds terms that a changed model comes under: licence, notice or use policy.

    >>> [is_terms(name) for name in ("LICENSE", "Notice.md", "USE_POLICY.md", "LICENSE-MODEL.txt", "license.py")]
    [True, True, True, True, False]
    """
    suffix = Path(name).suffix.lower()
    plain = suffix in _TERMS_SUFFIXES or suffix[1:].isdigit()  # of a version, as in LICENSE-2.0
    return plain and _TERMS.fullmatch(name) is not None


def side_names(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that are used beside the weights, sorted: config, tokenizer, card, terms and chat templates.

    Raises `BrokenModel` for very many files of terms or templates.
    """
    known = set(names)
    terms = [name for name in known if is_terms(name)]
    templates = [name for name in known if _TEMPLATE.fullmatch(name)]
    for kind, found in (("named as licences and notices", terms), (f"in {_TEMPLATES}", templates)):
        if len(found) > _MOST_OF_A_KIND:
            raise BrokenModel(
                f"the model has {len(found)} files {kind}; at most {_MOST_OF_A_KIND} are carried over",
                value=sorted(found)[:_NAMED],
            )
    return tuple(sorted([*known.intersection(_SIDE_FILES), *terms, *templates]))


def check_size(name: str, size: int) -> None:
    """Raise `BrokenModel` if a file that is read whole is too large; the limits are in `_LARGEST`."""
    largest = _LARGEST.get(name, _LARGEST_OTHER)
    if size > largest:
        raise BrokenModel(
            f"{name} has {size:,} bytes; at most {largest:,} are read ({largest // _MEGABYTE} MB)", value=name
        )


def weight_files(directory: Path) -> list[Path]:
    """The files in `directory` that are the model's weights. Raises as `choose_weights` and `admit_file` do."""
    names, index = _names(directory), None
    if INDEX in names:
        index = read_json_file(_small(admit_file(directory, INDEX)), INDEX, limit=_LARGEST[INDEX])
    return [admit_file(directory, name) for name in choose_weights(names, index)]


def side_files(directory: Path) -> list[Path]:
    """The other files that are used, of those in `directory`. Raises as `admit_file`, `check_size` and `side_names`."""
    names = (name for name in _names(directory) if not (is_terms(name) and (directory / name).is_dir()))
    return [_small(admit_file(directory, name)) for name in side_names(names)]


def used_files(directory: Path) -> list[Path]:
    """Those of `side_files` that decide what a model does: not the card, the terms, and templates chosen by name."""
    beside = (path for path in side_files(directory) if path.parent == directory)
    return [path for path in beside if path.name != CARD and not is_terms(path.name)]


def copy_files(files: Iterable[Path], directory: Path, target: Path) -> None:
    """Copy `files`, which lie in `directory` or in a folder of it, to the same places in `target`."""
    for path in files:
        place = target / path.relative_to(directory)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST_IMAGES = 200_000


def image_files(directory: Path) -> list[Path]:
    """The images in a directory and below it, sorted, at most `MOST_IMAGES`; links elsewhere do not count."""
    home = directory.resolve()
    found = (path for path in directory.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    files = (path for path in found if path.is_file() and path.resolve().is_relative_to(home))
    return sorted(islice(files, MOST_IMAGES))


def read_config(directory: Path) -> dict[str, object]:
    """The content of `config.json`, unchecked. Raises `BrokenModel` and `UnsafeModel`."""
    if not (directory / CONFIG).exists():
        raise BrokenModel(f"{directory.name} has no {CONFIG}", value=directory.name)
    return read_json_file(_small(admit_file(directory, CONFIG)), CONFIG)


def admit_file(directory: Path, name: str) -> Path:
    """`directory / name`, which is a regular file of this model: it lies there, or is a link to a blob of its own.

    In a cache of the Hub all files are links to `blobs` of the same repository. Raises `UnsafeModel` for a link that
    leads elsewhere, and `BrokenModel` if the file is missing or something else than a file: to open a pipe would block.
    """
    path = directory / name
    try:
        if path.is_symlink() and not _leads_home(path, directory):
            raise UnsafeModel(
                f"{name} is a link that leads out of the model's directory; put the file itself there", value=name
            )
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BrokenModel(f"{name} cannot be read: {reason}", value=name) from None
    if not stat.S_ISREG(mode):
        raise BrokenModel(f"{name} is a {_kind(mode)}, not a regular file; put the file itself there", value=name)
    if not os.access(path, os.R_OK):
        raise BrokenModel(f"{name} cannot be read: {os.strerror(errno.EACCES)}", value=name)
    return path


def _small(path: Path) -> Path:
    check_size(path.name, path.stat().st_size)
    return path


def _leads_home(link: Path, directory: Path) -> bool:
    home, target = Path(os.path.realpath(directory)), Path(os.path.realpath(link))
    if target.is_relative_to(home):
        return True
    repository = home.parent.parent  # in a cache: CACHE/models--ORG--NAME/snapshots/REVISION
    if home.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return False
    blob = Path(os.path.normpath(os.path.realpath(link.parent) / link.readlink()))
    # A blob may itself be a link to a store that all repositories share. What matters is that it is listed in ours.
    stores = (repository / "blobs", repository.parent / "blobs")
    through_own_blob = blob.parent == stores[0] and Path(os.path.realpath(blob)) == target
    return through_own_blob and any(target.is_relative_to(store) for store in stores)


def _names(directory: Path) -> frozenset[str]:
    """Of all files and folders, and of the files in the folder of templates."""
    folder = directory / _TEMPLATES
    try:
        nested = folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ()
        return frozenset(path.relative_to(directory).as_posix() for path in (*directory.iterdir(), *nested))
    except OSError as error:
        raise BrokenModel(f"{directory.name} cannot be read: {error.strerror}", value=directory.name) from None


def _is_weights(name: str) -> bool:
    """Whether a name is one of a file at the top level that may hold weights.

    >>> [_is_weights(name) for name in ("model-00001-of-00002.safetensors", "../model.safetensors", "model.bin")]
    [True, False, False]
    """
    plain = name.isprintable() and not any(separator in name for separator in "/\\")
    return plain and name.endswith(WEIGHTS_SUFFIX) and not name.startswith(".")


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _no_weights(names: Collection[str]) -> InvalidInput:
    others = sorted(name for name in names if name.endswith(WEIGHTS_SUFFIX))
    pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
    unread = pickles or sorted(name for name in names if name.endswith(".gguf"))
    if others:
        advice = "; merge an adapter into its base model first" if others[0].startswith("adapter_") else ""
        return UnsafeModel(
            f"the repository has {', '.join(others[:_NAMED])}, but neither {SINGLE} nor {INDEX}, so it is not clear "
            f"which are the weights{advice}",
            value=others[:_NAMED],
        )
    why = "can run code when loaded" if pickles else "is not read"
    found = f"only {', '.join(unread[:_NAMED])}, which {why}" if unread else "no weights"
    return UnsafeModel(f"the repository has {found}; weights must be safetensors ({SINGLE})", value=unread[:_NAMED])


READ_AT_ONCE = 8
"""Headers, while a model of 671 billion parameters has 163 files; the Hub takes a tenth of a second for each."""
MOST_WEIGHT_FILES = 1_000


def check_listing(snapshot: Snapshot) -> None:
    """Raise `UnsafeModel` without weights or with pickles only, and `BrokenModel` for files that are too large.

    The index is not read: at submission that would take a download, and a large one would hold up other requests.
    """
    if not snapshot.has(INDEX):
        choose_weights(snapshot.sizes, None)
    for name in {INDEX, *side_names(snapshot.sizes)} & snapshot.sizes.keys():
        check_size(name, snapshot.sizes[name])


def files_to_download(snapshot: Snapshot, hub: Hub) -> tuple[str, ...]:
    """The model's weights, config, tokenizer, card and terms, sorted. Reads the index.

    Raises as `check_listing` and `choose_weights` do, and `BrokenModel` for weights in very many files.
    """
    check_listing(snapshot)
    index = read_hub_json(hub, snapshot, INDEX, limit=_LARGEST[INDEX]) if snapshot.has(INDEX) else None
    weights = choose_weights(snapshot.sizes, index)
    if len(weights) > MOST_WEIGHT_FILES:
        raise BrokenModel(
            f"the weights are in {len(weights):,} files, more than {MOST_WEIGHT_FILES:,}; save them in larger ones",
            value=len(weights),
        )
    rest = side_names(snapshot.sizes)
    return tuple(sorted([*weights, *rest, *([INDEX] if index is not None and weights != (SINGLE,) else [])]))


def stored_tensors(snapshot: Snapshot, hub: Hub, files: Sequence[str]) -> list[TensorPlace]:
    """The tensors of the weights among `files`, from their headers, without the data. Raises as `read_headers` does."""
    sizes = {name: snapshot.sizes[name] for name in files if name.endswith(WEIGHTS_SUFFIX)}
    with ThreadPoolExecutor(max_workers=READ_AT_ONCE, thread_name_prefix="headers") as pool:
        return read_headers(
            sizes, lambda name, start, end: hub.read_range(snapshot, name, start=start, end=end), map_over=pool.map
        )
