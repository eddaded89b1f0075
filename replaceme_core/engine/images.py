"""The images that calibrate, judge and measure a model: read, decoded, and prepared as the model expects them.

Files are PNG, JPEG or WebP, in a directory or in a column of a data set. A stranger may have made them: sizes are
checked before anything is decoded, and an image that cannot be used is named in an error.
"""

import base64
import hashlib
import heapq
import io
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from replaceme_core.engine.model.load import private_view
from replaceme_core.engine.text.drawing import READ_FOR_EACH, Pictures, TokenSet
from replaceme_core.engine.text.rows import rows_of
from replaceme_core.engine.text.tokens import FEWEST_SAMPLES
from replaceme_core.errors import BrokenModel, CalibrationTooSmall, InvalidInput
from replaceme_core.hub.data_files import local_data_files
from replaceme_core.hub.files import read_json_file
from replaceme_core.hub.model_files import PREPROCESSOR, image_files
from replaceme_core.library_errors import library_errors
from replaceme_core.request.calibration import MixedSource, held_out_samples
from replaceme_core.request.defaults import IMAGES_FOR_SEQUENCE
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.wording import counted, shorten

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_BYTES = 32 * 2**20
MOST_PIXELS = 64_000_000
"""Of one image: decoded, 192 MB."""
LONGEST_SIDE = 4096
"""Of an image that is prepared."""
FEWEST_READ = 512
"""Images among which some are drawn, if there are enough."""
MEASURING_PART = 5
"""Of few images, one in this number measures the result."""
CAPTIONS = "metadata.jsonl"
"""Beside images in a directory: lines with `file_name`, and `text` or `caption`."""
_IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "class", "category", "fine_label", "coarse_label")
_CAPTION_COLUMNS = ("text", "caption", "captions", "sentence", "description", "title")


@dataclass(frozen=True, kw_only=True)
class _Found:
    """An image that is not decoded yet. `name` is for messages."""

    name: str
    read: Callable[[], bytes]
    label: str | None = None
    caption: str | None = None


def load_processor(directory: Path) -> BaseImageProcessor:
    """What prepares images for the model in the directory. Raises `BrokenModel`, also for a huge size of images."""
    with private_view(directory, weights=False) as view:
        if not (view / PREPROCESSOR).exists():
            raise BrokenModel(f"the model has no {PREPROCESSOR}, so it is not known how images are prepared for it")
        options = read_json_file(view / PREPROCESSOR, PREPROCESSOR)
        for name in ("size", "crop_size", "pad_size"):
            given = options.get(name)
            for side in given.values() if isinstance(given, Mapping) else [given]:
                if side is not None and not (type(side) is int and 0 < side <= LONGEST_SIDE):
                    raise BrokenModel(
                        f"{PREPROCESSOR} gives {name} as {shorten(repr(given), 80)}; sides must be whole numbers of "
                        f"at most {LONGEST_SIDE} pixels",
                        value=name,
                    )
        with library_errors(f"{PREPROCESSOR} cannot be used", view=view, name=directory.name):
            found: BaseImageProcessor = AutoImageProcessor.from_pretrained(view, backend="pil", local_files_only=True)
    return found


def image_tokens(
    spec: ResolvedSpec, processor: BaseImageProcessor, *, requested: CompressionSpec, path: Path | None
) -> tuple[ResolvedSpec, TokenSet]:
    """The images of the resolved `spec`, which has fewer samples where there are fewer and none were `requested`.

    Different ones only; those that measure the result take no part in anything else. Raises `CalibrationTooSmall`, and
    `InvalidInput` for an image that cannot be used.
    """
    assert path is not None, "images are in files"
    (source,) = spec.calibration.mix
    samples, measured = spec.calibration.samples, IMAGES_FOR_SEQUENCE * spec.evaluation.samples
    wanted = samples + measured
    listed = _of_directory(path) if source.is_file else _of_rows(source, path)
    # the evaluation must not change what calibrates
    some = islice(listed, max(FEWEST_READ, READ_FOR_EACH * samples))
    found = _drawn(some, wanted, seed=spec.calibration.seed)
    if len(found) < wanted:
        measured = min(measured, max(1, len(found) // MEASURING_PART))
        if requested.calibration.samples is None:
            samples = min(samples, len(found) - measured)
        fewest = FEWEST_SAMPLES if requested.calibration.samples is None else samples
        if samples < fewest or samples + measured > len(found):
            raise CalibrationTooSmall(
                f"{source.name} has {counted(len(found), 'different images')}; {max(samples, fewest)} would "
                f"calibrate and {measured} measure the result: give more images, or smaller numbers of samples",
                field=source.name_field,
                value=source.name,
            )
        spec = spec.model_copy(update={"calibration": spec.calibration.model_copy(update={"samples": samples})})
    prepared = [_prepared(one, processor) for one in found[: samples + measured]]
    if any(one.shape != prepared[0].shape for one in prepared):
        raise BrokenModel(f"{PREPROCESSOR} makes images of different sizes; give height and width, or a crop_size")
    pixels = torch.stack(prepared)
    fitted = samples - held_out_samples(samples)
    numbers = torch.arange(len(pixels)).unsqueeze(1).expand(-1, spec.calibration.max_length)
    fit, held_out, measure = (part.contiguous() for part in numbers.tensor_split([fitted, samples]))
    scored = torch.zeros_like(held_out, dtype=torch.bool)
    scored[:, -1] = True  # one judgement for each image
    sources = torch.zeros(len(pixels), dtype=torch.long)
    return spec, TokenSet(
        fit=fit,
        held_out=held_out,
        measure=measure,
        sources=(source.name,),
        fit_sources=sources[: len(fit)],
        held_out_sources=sources[: len(held_out)],
        measure_sources=sources[: len(measure)],
        held_out_scored=scored,
        pictures=Pictures(
            pixels=pixels,
            labels=tuple(one.label for one in found[: len(pixels)]),
            captions=tuple(one.caption for one in found[: len(pixels)]),
        ),
    )


def _drawn(listed: Iterable[_Found], wanted: int, *, seed: int) -> list[_Found]:
    """At most `wanted` different images, in an order that depends on their content and the seed alone."""

    def different() -> Iterator[tuple[str, _Found]]:
        seen = set[str]()
        for one in listed:
            digest = hashlib.sha256(one.read()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                yield hashlib.sha256(f"{seed} {digest}".encode()).hexdigest(), one

    return [one for _, one in heapq.nsmallest(wanted, different(), key=itemgetter(0))]


def _of_directory(home: Path) -> Iterator[_Found]:
    """The files in it and below it, in random order. The name of a directory below is the label of its images."""
    captions = _captions(home)
    files = image_files(home)
    if not files:
        raise InvalidInput(f"{home.name}/ has no PNG, JPEG or WebP files", field="calibration.dataset", value=home.name)
    for file in random.Random(0).sample(files, len(files)):
        name = file.relative_to(home).as_posix()
        label = None if file.parent == home else file.parent.name
        yield _Found(name=name, read=partial(_content, file), label=label, caption=captions.get(name))


def _content(file: Path) -> bytes:
    if file.stat().st_size > MOST_BYTES:
        raise _refused(file.name, f"has {file.stat().st_size:,} bytes; at most {MOST_BYTES:,} are read")
    return file.read_bytes()


def _captions(home: Path) -> dict[str, str]:
    rows = rows_of(home / CAPTIONS, ()) if (home / CAPTIONS).is_file() else ()
    named = ((row.get("file_name"), _first(row, _CAPTION_COLUMNS)) for row in rows)
    return {name: caption for name, caption in named if isinstance(name, str) and caption is not None}


def _of_rows(source: MixedSource, path: Path) -> Iterator[_Found]:
    columns = _IMAGE_COLUMNS if source.column is None else (source.column,)
    for file in local_data_files(path, config=source.config, split=source.split):
        for number, row in enumerate(rows_of(file, (*columns, *_LABEL_COLUMNS, *_CAPTION_COLUMNS)), start=1):
            content = next((found for name in columns if (found := _packed(row.get(name))) is not None), None)
            if content is None and any(name in row and row[name] is None for name in columns):
                continue
            if content is None:
                raise InvalidInput(
                    f"{file.name} has no column with images; its columns are {shorten(', '.join(sorted(row)), 200)}: "
                    "name one as column",
                    field="calibration.column",
                    value=source.column,
                )
            yield _Found(
                name=f"row {number} of {file.name}",
                read=partial(bytes, content),
                label=_first(row, _LABEL_COLUMNS),
                caption=_first(row, _CAPTION_COLUMNS),
            )


def _packed(value: object) -> bytes | None:
    """The image in a row: as the library datasets stores one, or alone; both in base64."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    try:
        return base64.b64decode(content, validate=True) if isinstance(content, str) and content else None
    except ValueError:
        return None


def _first(row: Mapping[str, object], names: tuple[str, ...]) -> str | None:
    """What the first of these columns says that is there; of a list, its first entry."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if isinstance(value, list):
        value = value[0] if value else None
    return None if value is None or isinstance(value, Mapping) else str(value)


def _prepared(one: _Found, processor: BaseImageProcessor) -> torch.Tensor:
    """The pixels (channels, height, width) in float16, of which an image has fewer digits. Raises `InvalidInput`."""
    try:
        with Image.open(io.BytesIO(one.read()), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise _refused(one.name, f"has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read")
            upright = _upright(image)
            if upright.mode.startswith("I"):  # 16 bits, which a conversion would cut off at the eighth
                upright = upright.convert("I").point(lambda value: value / 256).convert("L")
            colours = upright.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise _refused(one.name, "is no image that can be read as PNG, JPEG or WebP; remove it") from None
    with library_errors("the processor of the model does not take an image"):
        pixels: torch.Tensor = processor(images=[colours], return_tensors="pt")["pixel_values"]
    return pixels[0].half()


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; where that is damaged, as it is stored."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # struct.error, TypeError and others
        return image


def _refused(name: str, what: str) -> InvalidInput:
    return InvalidInput(f"{shorten(name, 200)} {what}", field="calibration.dataset", value=name)
