"""Images are read within limits, drawn without repetition, and an image that cannot be used is named."""

import io
import json
import shutil
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import ExifTags, Image

from replaceme_core.engine import images
from replaceme_core.engine.images import image_tokens, load_processor
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.errors import BrokenModel, CalibrationTooSmall, InvalidInput
from replaceme_core.hardware import WorkerKind
from replaceme_core.request.resolve import Machine, resolve_spec
from replaceme_core.request.spec import CompressionSpec
from tests.fixtures.models.images import PREPARATION, SIDE, make_images, saved_tower

POSITIONS = 17


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_tower(tmp_path_factory.mktemp("models") / "vit", "vit")


def read(model: Path, path: Path, *, measured: int = 2, **calibration: object) -> tuple[int, TokenSet]:
    """The number of samples that the images of a directory, or of a data set at org/name, give; and their tokens."""
    dataset = {"dataset": "org/name"} if (path / "data.parquet").exists() else {"dataset": "file:images/"}
    spec = CompressionSpec.model_validate(
        {
            "model": {"repo_id": "org/model"},
            "ratio": 0.25,
            "calibration": {**dataset, **calibration},
            "evaluation": {"samples": measured},
        }
    )
    resolved = resolve_spec(spec, Machine(kind=WorkerKind.CPU), values=1000, positions=POSITIONS)
    resolved, tokens = image_tokens(resolved, load_processor(model), requested=spec, path=path)
    return resolved.calibration.samples, tokens


def test_every_image_is_drawn_once_and_has_its_label(model: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 60)
    (folder / "cat" / "again.PNG").write_bytes((folder / "cat" / "000.png").read_bytes())
    (folder / "notes.txt").write_text("no image")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "dog/001.png", "text": "a grey dog"}) + "\n")
    samples, tokens = read(model, folder)
    assert tokens.pictures is not None
    assert (samples, len(tokens.fit), len(tokens.held_out), len(tokens.measure)) == (48, 42, 6, 12)
    numbers = torch.cat([tokens.fit, tokens.held_out, tokens.measure])
    assert torch.equal(numbers, torch.arange(60).unsqueeze(1).expand(-1, POSITIONS)), "each part has its own"
    pixels = tokens.pictures.pixels
    assert (tuple(pixels.shape), pixels.dtype) == ((60, 3, SIDE, SIDE), torch.float16)
    assert len({one.numpy().tobytes() for one in pixels}) == 60
    bright = pixels.float().mean((1, 2, 3)) > 0
    assert [label == "dog" for label in tokens.pictures.labels] == bright.tolist()
    assert [caption for caption in tokens.pictures.captions if caption] == ["a grey dog"]
    assert tokens.held_out_scored is not None
    assert tokens.held_out_scored.sum(1).tolist() == [1] * 6
    assert torch.equal(read(model, folder)[1].pictures.pixels, pixels)  # type: ignore[union-attr]
    assert not torch.equal(read(model, folder, seed=1)[1].pictures.pixels, pixels)  # type: ignore[union-attr]


def test_what_calibrates_does_not_depend_on_the_evaluation(model: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 80)
    (samples, tokens), (_, more) = (read(model, folder, samples=40, measured=measured) for measured in (1, 2))
    assert (samples, len(tokens.measure), len(more.measure)) == (40, 8, 16)
    assert tokens.pixels is not None
    assert more.pixels is not None
    assert torch.equal(tokens.pixels[:40], more.pixels[:40])


def test_a_data_set_with_a_column_of_images(model: Path, tmp_path: Path) -> None:
    rng = numpy.random.default_rng(0)

    def packed(number: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=numpy.uint8)).save(
            file, "WEBP" if number % 2 else "JPEG"
        )
        return file.getvalue()

    rows = {
        "image": [None, *({"bytes": packed(number), "path": f"{number}.jpg"} for number in range(40))],
        "label": [number % 3 for number in range(41)],
        "caption": [f"picture {number}" for number in range(41)],
    }
    features = {"info": {"features": {"label": {"names": ["ape", "bee", "cow"], "_type": "ClassLabel"}}}}
    table = pyarrow.table(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    samples, tokens = read(model, tmp_path)
    assert tokens.pictures is not None
    assert (samples, len(tokens.pictures.pixels)) == (32, 40), "a row has no image"
    assert set(tokens.pictures.labels) == {"ape", "bee", "cow"}
    assert all(caption is not None and caption.startswith("picture ") for caption in tokens.pictures.captions)
    with pytest.raises(
        InvalidInput, match="has no column with images; its columns are caption, image, label"
    ) as caught:
        read(model, tmp_path, column="caption")
    assert caught.value.field in ("calibration.column", "calibration.dataset")


def test_as_few_images_as_are_asked_for(model: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 10)
    samples, tokens = read(model, folder, samples=8)
    assert (samples, len(tokens.fit), len(tokens.held_out), len(tokens.measure)) == (8, 7, 1, 2)
    with pytest.raises(CalibrationTooSmall, match="has 10 different images; 9 would calibrate and 2 measure"):
        read(model, folder, samples=9)
    samples, tokens = read(model, make_images(tmp_path / "more", 30), samples=2)
    assert (samples, len(tokens.measure)) == (2, 16), "few that calibrate are measured on as many as others"


SHADES = numpy.arange(20 * 24, dtype=numpy.uint8).reshape(20, 24)
TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6


@pytest.mark.parametrize(
    ("stored", "exif", "shown"),
    [
        (Image.fromarray(SHADES * numpy.uint16(257)), b"", Image.fromarray(SHADES)),
        (Image.fromarray(SHADES), TURNED.tobytes(), Image.fromarray(numpy.rot90(SHADES, -1))),
        (Image.fromarray(SHADES), b"Exif\0\0MM\0*\0\0", Image.fromarray(SHADES)),
    ],
    ids=["16 bits", "turned", "damaged EXIF"],
)
def test_an_image_is_read_as_it_is_shown(
    stored: Image.Image, exif: bytes, shown: Image.Image, model: Path, tmp_path: Path
) -> None:
    folder = make_images(tmp_path / "images", 30)
    for name, image, options in (("stored", stored, {"exif": exif} if exif else {}), ("shown", shown, {})):
        (folder / name).mkdir()
        image.save(folder / name / "image.png", **options)
    pictures = read(model, folder)[1].pictures
    assert pictures is not None
    found, wanted = (pictures.pixels[pictures.labels.index(name)] for name in ("stored", "shown"))
    assert torch.equal(found, wanted)


def test_an_image_that_cannot_be_used_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_images(tmp_path / "images", 30)
    broken = folder / "cat" / "broken.png"
    for content in (b"", b"GIF89a", (folder / "cat" / "000.png").read_bytes()[:200]):
        broken.write_bytes(content)
        with pytest.raises(
            InvalidInput, match=r"broken\.png is no image that can be read as PNG, JPEG or WebP; remove it"
        ):
            read(model, folder)
    broken.unlink()
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    with pytest.raises(InvalidInput, match=r"has 24 x 20 pixels; at most 100 are read"):
        read(model, folder)
    monkeypatch.setattr(images, "MOST_BYTES", 100)
    with pytest.raises(InvalidInput, match=r"bytes; at most 100 are read"):
        read(model, folder)


def test_a_bomb_is_not_unpacked(model: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 30)
    Image.new("1", (14_000, 14_000)).save(folder / "bomb.png")
    with pytest.raises(InvalidInput, match=r"bomb\.png (has 14000 x 14000 pixels|is no image)"):
        read(model, folder)


def test_a_link_elsewhere_is_not_read(model: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 30)
    other = make_images(tmp_path / "secret", 1, seed=9)
    (folder / "link.png").symlink_to(other / "cat" / "000.png")
    _, tokens = read(model, folder)
    assert tokens.pictures is not None
    assert len(tokens.pictures.pixels) == 30


def test_images_of_different_sizes(model: Path, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 40)
    Image.new("RGB", (90, 20)).save(folder / "wide.png")
    place = tmp_path / "model"
    shutil.copytree(model, place)
    shortest = {**PREPARATION, "size": {"shortest_edge": SIDE}}
    (place / "preprocessor_config.json").write_text(json.dumps(shortest))
    with pytest.raises(BrokenModel, match="makes images of different sizes"):
        read(place, folder)


def test_too_few_images(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationTooSmall, match="has 10 different images; 16 would calibrate and 2 measure"):
        read(model, make_images(tmp_path / "images", 10))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="has no PNG, JPEG or WebP files"):
        read(model, tmp_path / "empty")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": {"height": 100_000, "width": 56}}, "gives size as"),
        ({"size": -1}, "gives size as"),
        ({"image_processor_type": "NoSuchProcessor"}, "cannot be used"),
        (None, "has no preprocessor_config.json"),
    ],
)
def test_a_processor_that_cannot_be_used(
    model: Path, tmp_path: Path, changes: dict[str, object] | None, words: str
) -> None:
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_bytes((model / "config.json").read_bytes())
    if changes is not None:
        (place / "preprocessor_config.json").write_text(json.dumps({**PREPARATION, **changes}))
    with pytest.raises(BrokenModel, match=words):
        load_processor(place)
