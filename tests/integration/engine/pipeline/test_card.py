"""The model card: what the Hub reads of it, what a person reads, and that nothing in it is invented."""

import itertools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from replaceme_core.families.layout import MapStructure
from replaceme_core.report.card import PICTURE, BaseCard, read_base_card, write_card
from replaceme_core.request.spec import CompressionRequest
from replaceme_core.wording import printable
from tests.fixtures.hostile.texts import TEXTS
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.tiny import BY_NAME, save_tiny
from tests.fixtures.reports.shown import Rendered, rendered

HUB = "https://huggingface.co"
REVISION = "a" * 40
HEADER = "---\nlicense: other\nlicense_name: tiny-terms\nlicense_link: LICENSE\nlanguage: [en, de]\n---\n# Tiny\n"
OURS = ("distance", "residual", "window", "anchor", "stream", "None", "nan")
"""Words that only we use, and what a value that is missing would look like."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = save_tiny(tmp_path / "source", dtype=torch.bfloat16)
    (directory / "README.md").write_text(HEADER)
    (directory / "LICENSE").write_text("Do as you like.")
    return directory


def read(out: Path) -> ModelCard:
    """The card, which `ModelCard` refuses if its header or its results are not valid."""
    return ModelCard.load(out / "README.md", ignore_metadata_errors=False)


def body(card: ModelCard) -> str:
    """The text without code, in which words of the tool's interface may stand."""
    return re.sub(r"```.*?```|`[^`]*`", "", card.text, flags=re.DOTALL)


def test_what_the_hub_and_a_person_read(source: Path) -> None:
    calibration = {"dataset": "file:text.txt", "samples": 16, "max_length": 32, "repeated": 0.25}
    finished, _, out = run(request(source, calibration=calibration).model_copy(update={"hub": HUB}))
    card = read(out)
    data = card.data
    assert (
        data.to_dict().items()
        >= {
            "license": "other",
            "license_name": "tiny-terms",
            "license_link": "LICENSE",
            "language": ["en", "de"],
            "base_model": "org/tiny",
            "base_model_relation": "finetune",
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
        }.items()
    )
    assert {"depth-pruning", "replaceme", "pruned"} <= set(data.tags)
    assert data.datasets is None, "a file is no data set on the Hub"
    texts = finished.report["texts"]
    assert isinstance(texts, list)
    assert data.eval_results is not None
    found = [(one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results]
    assert found == [(row["name"], "perplexity", round(row["after"], 4)) for row in texts]
    assert (out / "LICENSE").read_text() == "Do as you like."
    first, last = finished.removed_blocks[0], finished.removed_blocks[-1]
    for expected in (
        "# tiny, 4 of 6 blocks",
        f"[org/tiny]({HUB}/org/tiny/tree/{REVISION}) with 4 of its 6 blocks (layers).",
        f"Blocks {first}-{last} of the original (counted from 0) were removed. A linear map",
        "Calibration: 16 sequences of 32 tokens (seed 0) of the file text.txt",
        "(seed 0) of the file text.txt, and 4 sequences with repeated passages of the others.",
        "| Text | Original | Result | Ratio (95 % interval) |",
        "| Weights on disk |",
        "| Tokens written per second |",
        "| KV cache per token | 384 B | 256 B | -33.3 % |",
        "95 percent confidence interval",
        "| Perplexity per byte |",
        "| Prompt | Original | Result |",
        "Speed was measured on ",
        "AutoModelForCausalLM.from_pretrained(name",
        "from vllm import LLM",
        "## Limits",
        "replaceme reproduce path/to/this/directory",
        "`tiny-terms`. Its files are here too: `LICENSE`.",
        "](layers.png)",
    ):
        assert expected in card.text
    assert not [word for word in OURS if re.search(rf"\b{word}\b", body(card))]
    assert (out / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_the_request_in_the_card_makes_it_again(source: Path) -> None:
    _, recorder, out = run(request(source, drop=[2]).model_copy(update={"hub": HUB}))
    (text,) = re.findall(r"```json\n(.*?)```", read(out).text, flags=re.DOTALL)
    again = CompressionRequest.model_validate(json.loads(text)).to_spec()
    assert recorder.spec is not None
    assert again.model_dump(exclude={"output"}) == recorder.spec.model_dump(exclude={"output"})


def test_of_a_directory_nothing_is_invented(source: Path) -> None:
    """No page on the Hub, no revision, and no name of a temporary directory."""
    (source / "README.md").unlink()
    (source / "LICENSE").unlink()
    one = request(source, model={"repo_id": "local/tiny"}, evaluation={"enabled": False})
    _, _, out = run(one)
    card = read(out)
    data = card.data.to_dict()
    assert not data.keys() & {"license", "language", "base_model", "base_model_relation", "datasets", "model-index"}
    assert "`tiny` with 4 of its 6 blocks (layers)." in card.text
    assert "`tiny` states no licence" in card.text
    assert "replaceme compress MODEL_DIR --out OUT" in card.text
    assert "--model MODEL_DIR" in card.text
    assert "Its quality was not measured." in card.text
    assert not re.search(r"huggingface\.co/(local|org)|None|partial|local/", card.text)
    assert not [word for word in OURS if re.search(rf"\b{word}\b", body(card))]


def test_a_result_in_a_directory_that_acts_as_the_hub_is_loaded_by_its_path(source: Path) -> None:
    """Its name there, such as `local/small`, is no name on the Hub; the original is shown as it was asked for."""
    model = {"repo_id": "acme/tiny", "revision": "a" * 40}
    _, _, out = run(request(source, model=model, output={"repo_id": "local/small"}, evaluation={"enabled": False}))
    text = read(out).text
    assert "`acme/tiny` with 4 of its 6 blocks (layers)." in text
    assert 'name = "path/to/this/directory"' in text
    assert "local/small" not in text


def test_a_chat_model_is_asked_and_without_matplotlib_there_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    template = "{% for one in messages %}{{ one.content }}{% endfor %}"
    source = save_tiny(tmp_path / "source", chat_template=template)
    _, _, out = run(request(source, evaluation={"enabled": False}))
    text = read(out).text
    assert "apply_chat_template(" in text
    assert "llm.chat(" in text
    assert not (out / PICTURE).exists()
    assert PICTURE not in text


def gemma2(tmp_path: Path) -> Path:
    variant = BY_NAME["gemma2"]
    return save_tiny(tmp_path / "source", variant=variant)


def test_a_pattern_that_is_broken_is_said(tmp_path: Path) -> None:
    finished, _, out = run(request(gemma2(tmp_path), drop=[2], evaluation={"enabled": False}))
    assert finished.report["irregular"] == ["layer_types"]
    (warning,) = finished.report["warnings"]  # type: ignore[misc]
    assert warning["code"] == "irregular_pattern"
    text = read(out).text
    assert "> **Warning:** the kinds of its layers (layer_types in config.json) follow no fixed step" in text
    assert "any software that runs the original" not in text


def test_only_what_keeps_the_pattern_is_removed(tmp_path: Path) -> None:
    """Of one block, only the last may go."""
    compute = {"threads": 1, "dtype": "float32", "pattern_safe": True}
    one = request(gemma2(tmp_path), ratio=0.17, compute=compute, evaluation={"enabled": False})
    finished, recorder, out = run(one)
    assert finished.removed_blocks == [5]
    assert [row["start"] for row in finished.report["candidates"]] == [5]  # type: ignore[attr-defined]
    assert finished.report["irregular"] == []
    assert recorder.spec is not None
    assert recorder.spec.method.name == "least_squares"
    assert recorder.spec.compute.pattern_safe, "else it would be made again without"
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 5


def test_what_the_time_budget_left_out_is_in_report_and_card(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=10)
    monkeypatch.setattr(
        "replaceme_core.engine.methods.auto.time", SimpleNamespace(monotonic=lambda: float(next(clock)))
    )
    method = {"name": "auto", "time_budget_seconds": 15.0}
    finished, _, out = run(request(source, method=method, evaluation={"enabled": False}))
    warnings = finished.report["warnings"]
    assert isinstance(warnings, list)
    assert [one["code"] for one in warnings] == ["time_budget"]
    assert f"> **Warning:** {warnings[0]['message']}." in (out / "README.md").read_text()


LICENSE_NAME = "mit`<img src=x onerror=alert(1)> [terms](https://evil.example)` | https://evil.example"
Content = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What a card was written from."""

    content: Content
    base: BaseCard


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Of a run on a model whose own card is hostile."""
    source = save_tiny(tmp_path_factory.mktemp("run") / "source", dtype=torch.bfloat16)
    (source / "README.md").write_text(f"---\nlicense: other\nlicense_name: {json.dumps(LICENSE_NAME)}\n---\n")
    finished, _, _ = run(request(source).model_copy(update={"hub": HUB}))
    return Written(content=json.loads(json.dumps(finished.report)), base=read_base_card(source))


def card_of(one: Written, place: Path) -> tuple[ModelCard, Rendered]:
    place.mkdir()
    write_card(place, one.content, base=one.base, is_chat=False, structure=MapStructure.FULL)
    card = read(place)
    return card, rendered(card.text)


def full_of(text: str, one: Written) -> Written:
    """The same report, with `text` wherever a stranger may have put it, also where a check would refuse it."""
    content: Content = json.loads(json.dumps(one.content))
    name = "".join(" " if one < " " or one in "/\x7f" else one for one in text.encode(errors="replace").decode())
    spec, score = content["spec"], {"accuracy": 0.5, "low": 0.4, "high": 0.6, "metrics": {}}
    sources = [
        {"dataset": f"file:a{name}.txt", "share": 0.5},
        {"dataset": "org/data", "share": 0.5, "config": name, "split": name, "column": name},
    ]
    sizes = {key: spec["calibration"][key] for key in ("samples", "max_length", "seed")}
    spec["calibration"] = {**sizes, "sources": sources}
    spec["model"]["repo_id"] = f"org/{name}"
    content["texts"] = [
        {**row, "name": each} for row, each in zip(content["texts"], (text, f"file:{text}"), strict=False)
    ]
    for row in content["answers"]:
        row |= {"prompt": text, "before": text, "after": text}
    content["tasks"] = [{"name": text, "before": score, "after": score, "samples": 9, "few_shot": 0, "chance": 0.25}]
    losses = {"start": 1, "end": 2, "held_out_loss": 3.0}
    content["candidates"] = [{**losses, "chosen": True, "source_losses": {text: 3.0, "b": 1.0}}, losses]
    content["disagreements"] = [{"source": text, "start": 1, "end": 2, "loss": 2.0, "chosen_loss": 3.0}]
    content["warnings"] = [{"code": "x", "message": text}]
    content["device"]["hardware"] = content["code"]["version"] = content["after"]["dtype"] = text
    content["irregular"] = [text]
    base = BaseCard(licence="other", name=text, link=text, languages=(text,), terms=(text,))
    return Written(content=content, base=base)


def test_the_name_of_a_licence_is_text(written: Written, tmp_path: Path) -> None:
    card, page = card_of(written, tmp_path / "out")
    assert card.data.license_name == LICENSE_NAME
    assert LICENSE_NAME in page.text
    assert (page.html, page.bare, [one for one in page.linked if "evil" in one]) == ([], [], [])


def test_text_of_strangers_is_text(written: Written, tmp_path: Path) -> None:
    """The blocks, the links and the fields are those of a card with plain words in these places."""
    plain_card, plain = card_of(full_of("word", written), tmp_path / "plain")
    for number, text in enumerate(TEXTS.values()):
        card, page = card_of(full_of(text, written), tmp_path / str(number))
        assert page.blocks == plain.blocks
        assert (page.html, page.bare) == ([], [])
        assert [one for one in page.linked if "evil" in one and not one.startswith(f"{HUB}/org/")] == []
        assert len(page.linked) == len(plain.linked)
        assert card.data.to_dict().keys() == plain_card.data.to_dict().keys()
        shown = (tmp_path / str(number) / "README.md").read_text()
        assert printable(shown, lines=True) == shown
        assert printable(" ".join(text.split())) in page.text
