"""Models of images: towers alone and beside one for text, from a directory of images to a result that loads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from benchmarks import families
from benchmarks.harness import tiny_models
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.known_keys import known_config
from replaceme_core.engine.model.load import load_model, stored_weights
from replaceme_core.errors import BrokenModel, UnsafeModel, UnsupportedFamily
from replaceme_core.families.layout import FAMILIES, follow_blocks
from replaceme_core.families.resolve import ResolvedModel, embeddings, resolve
from replaceme_core.hub.model_config import admit_config, read_outline
from tests.fixtures.models.images import POSITIONS, PREPARATION, SIDE, image_request, make_images, saved_tower
from tests.fixtures.models.pipeline import run

pytestmark = pytest.mark.usefixtures("brief_reports")

BLOCKS = tiny_models.BLOCKS


@pytest.mark.parametrize("model_type", ["clip", "vit"])
def test_the_program_writes_the_row(model_type: str) -> None:
    families.quiet()
    assert families.find(model_type).row == FAMILIES[model_type]


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        ("clip", "refit"),
        ("siglip", "least_squares"),
        ("vit", "auto"),
        ("dinov2", "refit"),
        ("clip_vision_model", "drop"),
        ("mlcd_vision_model", "refit"),
        ("deit", "perplexity_greedy"),
    ],
)
def test_a_job_from_images_to_a_model_that_loads(model_type: str, method: str, tmp_path: Path) -> None:
    # as DINOv2 is published: it was trained on larger images than it is given
    sizes = {"image_size": 2 * SIDE} if model_type == "dinov2" else {}
    source, row = saved_tower(tmp_path / "source", model_type, **sizes), FAMILIES[model_type]
    finished, recorder, result = run(
        image_request(source, make_images(tmp_path / "images", 60), method={"name": method})
    )
    config = json.loads((result / "config.json").read_text())
    assert row.part_of(config)["num_hidden_layers"] == BLOCKS - 2
    before, after = (load_file(place / "model.safetensors") for place in (source, result))
    others = [name for name in before if row.block_number(name) is None and "norm" not in name]
    assert others
    assert all(torch.equal(before[name], after[name]) for name in others), "such as those of the tower for text"
    report: Any = finished.report
    (measured,) = report["images"]
    assert (report["inputs"], report["texts"], report["warnings"]) == ("images", [], [])
    assert 0 <= measured["distance_low"] <= measured["distance"] <= measured["distance_high"] <= 2
    assert measured["images"] == 12, "one of five, where there are few"
    accuracies = {one[side]["accuracy"] for one in report["tasks"] for side in ("before", "after")}
    shares = {count / 12 for count in range(13)}
    assert {measured["agreement"], *accuracies} <= shares, "a limit of a gate that is met exactly is met"
    assert report["spec"]["calibration"]["samples"] == 48
    assert report["spec"]["calibration"]["max_length"] == read_outline(source).positions
    tasks = {one["name"] for one in report["tasks"]}
    assert tasks == ({"linear probe", "zero-shot"} if row.part else {"linear probe"})
    assert report["after"]["speed"]["images"]["runs"] > 0
    assert "perplexity" not in report["after"]
    again: Any = AutoModel.from_pretrained(result).eval()
    pixels = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        assert embeddings(again, pixels).isfinite().all()
    if method == "perplexity_greedy":
        steps = [one["held_out_loss"] for one in report["candidates"] if one["chosen"]]
        assert steps == sorted(steps) and steps[-1] == pytest.approx(recorder.value("result_held_out_loss"), rel=1e-3)
    assert {unit for _, name, _, unit, *_ in recorder.metrics if name.endswith("held_out_loss")} <= {"1 - cosine"}


@pytest.mark.parametrize("model_type", ["clip", "dinov2"])
def test_a_model_that_is_read_block_by_block_gives_the_same(model_type: str, tmp_path: Path) -> None:
    source, images = saved_tower(tmp_path / "source", model_type), make_images(tmp_path / "images", 60)
    found = []
    for loading in ("whole", "blockwise"):
        compute = {"threads": 1, "dtype": "float32", "loading": loading}
        finished, _, result = run(image_request(source, images, method={"name": "refit"}, compute=compute))
        files = sorted(path.name for path in result.iterdir())
        found.append((finished.removed_blocks, files, load_file(result / "model.safetensors")))
        shutil.rmtree(result)
    (*whole, weights), (*lazy, others) = found
    assert whole == lazy
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_chance_of_retrieval_knows_captions_that_several_images_have(tmp_path: Path) -> None:
    source, images = saved_tower(tmp_path / "source", "clip"), make_images(tmp_path / "images", 60)
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    rows = [{"file_name": name, "text": f"a {Path(name).parent} in the grass"} for name in names]
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    finished, *_ = run(image_request(source, images, method={"name": "drop"}))
    chances = {one["name"]: one["chance"] for one in finished.report["tasks"]}  # type: ignore[attr-defined]
    assert chances["retrieval"] >= 0.5, "of two captions, each of several images"


def test_a_tokenizer_that_the_tower_for_text_does_not_know_is_named(tmp_path: Path) -> None:
    source, images = saved_tower(tmp_path / "source", "clip"), make_images(tmp_path / "images", 60)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([*(f"other{number}" for number in range(1000)), "photo"])
    tokenizer.save_pretrained(source)
    finished, *_ = run(image_request(source, images, method={"name": "drop"}))
    (warning,) = finished.report["warnings"]  # type: ignore[misc]
    assert "the accuracy could not be measured: the tokenizer gives id" in warning["message"]


def test_a_refit_of_a_model_of_images_leaves_the_length_of_what_comes_out(tmp_path: Path) -> None:
    """The pooler after the final norm of this model would have its losses a little smaller at a factor of 0.93."""
    source, images = saved_tower(tmp_path / "source", "vit"), make_images(tmp_path / "images", 60)
    _, recorder, result = run(image_request(source, images, drop=[2, 3], method={"name": "refit"}))
    assert recorder.value("final_scale") == 1
    assert recorder.value("held_out_loss") == recorder.value("unscaled_held_out_loss")
    before, after = (load_file(place / "model.safetensors")["layernorm.weight"] for place in (source, result))
    assert torch.equal(before, after)


def test_a_classifier_keeps_its_head_and_is_loaded_with_it(tmp_path: Path) -> None:
    source = saved_tower(tmp_path / "source", "vit")
    names = {0: "cat", 1: "dog", 2: "tree"}
    config = AutoConfig.from_pretrained(source, id2label=names, label2id={name: key for key, name in names.items()})
    ViTForImageClassification(config).save_pretrained(source)
    _, _, result = run(image_request(source, make_images(tmp_path / "images", 40), drop=[2, 3]))
    before, after = (load_file(place / "model.safetensors") for place in (source, result))
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])
    card = (result / "README.md").read_text()
    assert "model = AutoModelForImageClassification.from_pretrained(" in card
    assert "pipeline_tag: image-classification" in card
    again: Any = AutoModelForImageClassification.from_pretrained(result)
    assert len(again.vit.layers) == BLOCKS - 2
    assert (again.config.id2label, again.config.label2id) == (names, config.label2id)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id2label", {"0": 1, "1": "dog"}),
        ("id2label", {"x": "cat"}),
        ("label2id", {"cat": {}}),
        ("label2id", ["cat"]),
        ("id2label", {str(label): "" for label in range(10_001)}),
    ],
    ids=["number", "key", "mapping", "list", "many"],
)
def test_labels_that_are_no_names_are_refused(key: str, value: object) -> None:
    config = json.loads(tiny_models.tiny_config("vit").to_json_string())
    with pytest.raises(BrokenModel, match=key):
        known_config({**config, key: value})


def test_positions_that_older_files_have_are_left_out(tmp_path: Path) -> None:
    source = saved_tower(tmp_path / "source", "clip")
    parameters = load_file(source / "model.safetensors")
    towers = {"text_model": 128, "vision_model": POSITIONS}
    counts = {f"{tower}.embeddings.position_ids": torch.arange(count)[None] for tower, count in towers.items()}
    save_file(parameters | counts, source / "model.safetensors", metadata={"format": "pt"})
    assert stored_weights(source).values == sum(values.numel() for values in parameters.values())
    load_model(source, dtype=torch.float32, device="cpu")


def test_a_tower_for_text_may_have_another_width(tmp_path: Path) -> None:
    """As that of Chinese-CLIP, whose embedding has the name of one of a language model."""
    config: Any = tiny_models.tiny_config("chinese_clip")
    config.text_config.hidden_size = 2 * config.vision_config.hidden_size
    tiny_models.built(config).save_pretrained(tmp_path)
    stored_weights(tmp_path)
    load_model(tmp_path, dtype=torch.float32, device="cpu")


def test_a_model_that_was_saved_without_its_pooler(tmp_path: Path) -> None:
    """As those of DINO: what its class would make up is not written."""
    source = saved_tower(tmp_path / "source", "vit")
    config = AutoConfig.from_pretrained(source)
    ViTModel(config, add_pooling_layer=False).save_pretrained(source)
    assert not any("pooler" in name for name in load_file(source / "model.safetensors"))
    _, _, result = run(image_request(source, make_images(tmp_path / "images", 40), drop=[2, 3]))
    assert not any("pooler" in name for name in load_file(result / "model.safetensors"))


def test_the_pruned_tower_is_the_live_one_without_the_blocks(tmp_path: Path) -> None:
    """As saved and loaded again by the library, to the rounding."""
    source = saved_tower(tmp_path / "source", "clip")
    images = make_images(tmp_path / "images", 40)
    _, _, result = run(image_request(source, images, drop=[2, 3], method={"name": "drop"}))
    pixels = torch.rand(3, 3, SIDE, SIDE)
    resolved = resolve(load_model(source, dtype=torch.float32, device="cpu"))
    runner = BlockRunner(resolved=resolved, pixels=pixels)
    with torch.inference_mode():
        numbers = torch.arange(3).unsqueeze(1).expand(-1, POSITIONS)
        stream = runner.enter(numbers)
        for block in (0, 1, 4, 5):
            stream = runner.run(block, stream)
        wanted = runner.leave(stream, numbers)
        found = embeddings(AutoModel.from_pretrained(result).eval(), pixels)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    source, images = saved_tower(tmp_path / "source", "clip"), make_images(tmp_path / "images", 40)
    first, _, result = run(image_request(source, images))
    weights = (result / "model.safetensors").read_bytes()
    shutil.rmtree(result)
    second, _, result = run(image_request(source, images))
    assert (result / "model.safetensors").read_bytes() == weights
    tokens: Any = [one.report["tokens"] for one in (first, second)]
    assert tokens[0] == tokens[1]
    assert set(tokens[0]) == {"fit", "held_out", "measure", "pixels"}
    texts: Any = first.report["calibration_texts"]
    assert len(texts[0]["files"]) == 40


@pytest.mark.parametrize("swiglu", [False, True])
def test_a_gain_is_absorbed_and_the_model_stays_the_same(swiglu: bool) -> None:
    config = tiny_models.tiny_config("dinov2", use_swiglu_ffn=swiglu)
    model = tiny_models.built(config)
    pixels = tiny_models.images()
    gains = [each for name, each in model.named_parameters() if name.endswith("lambda1")]
    assert len(gains) == 2 * BLOCKS
    assert not any(bool((gain == 1).all()) for gain in gains)
    with torch.no_grad():
        before = embeddings(model, pixels)
        resolved = resolve(model)
        after = embeddings(model, pixels)
    assert torch.allclose(before, after, atol=1e-4)
    assert all(bool((gain == 1).all()) for gain in gains)
    assert all(write.gain is not None for block in resolved.blocks for write in resolved.writes(block))


def test_streams_that_a_backbone_shows_follow_the_blocks() -> None:
    config = tiny_models.tiny_config("dinov2")
    config.out_indices = [0, 2, 4, 6]
    follow_blocks(config, layout=FAMILIES["dinov2"], kept=[0, 1, 4, 5])
    assert (config.out_indices, config.stage_names) == ([0, 2, 4], ["stem", "stage1", "stage2", "stage3", "stage4"])


def test_a_head_that_would_be_lost_is_refused(tmp_path: Path) -> None:
    source = saved_tower(tmp_path / "source", "vit", ViTForMaskedImageModeling, encoder_stride=14)
    config = json.loads((source / "config.json").read_text())
    with pytest.raises(UnsupportedFamily, match="has a head that would be lost"):
        admit_config(config)
    config["architectures"] = ["ViTModel"]
    assert (admit_config(config).positions, admit_config(config).auto_class) == (POSITIONS, "AutoModel")
    for size in (None, -14, [56], "56", 2**20):
        with pytest.raises(UnsafeModel, match="image_size and patch_size"):
            admit_config({**config, "image_size": size})


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, POSITIONS),
        ({"size": {"shortest_edge": 2 * SIDE}, "do_center_crop": True, "crop_size": {"height": 28, "width": 14}}, 3),
        ({"do_center_crop": True, "crop_size": SIDE}, POSITIONS),
        ({"size": {"shortest_edge": SIDE}}, 65),
        ({"size": "56"}, 65),
        ({"size": {"height": 1, "width": 1}}, 65),
    ],
)
def test_positions_are_those_of_images_as_they_are_prepared(
    changes: dict[str, object], positions: int, tmp_path: Path
) -> None:
    source = saved_tower(tmp_path / "source", "dinov2", image_size=2 * SIDE)
    (source / "preprocessor_config.json").write_text(json.dumps({**PREPARATION, **changes}))
    assert read_outline(source).positions == positions


def test_a_wrong_gain_or_weight_is_not_taken(tmp_path: Path) -> None:
    """Discovery of a tower whose gain is applied twice finds no weight that absorbs a map, or another one."""
    resolved = ResolvedModel(model=tiny_models.built(tiny_models.tiny_config("vit")), layout=FAMILIES["dinov2"])
    with pytest.raises(AttributeError):
        _ = resolved.blocks
