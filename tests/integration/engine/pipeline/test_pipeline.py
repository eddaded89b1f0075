"""The whole story on a tiny model: what is there afterwards, and what is reported; also of texts of the Hub."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from replaceme_core.engine.pipeline import compress
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.files import sha256_of
from replaceme_core.hub.model_config import read_outline
from replaceme_core.request.admission import OutputRules, resolve_request
from replaceme_core.request.spec import CompressionRequest
from replaceme_core.runner.inputs import fetch, resolve
from replaceme_core.runner.messages import Finished, RunnerRequest, Stage
from tests.fixtures.models.pipeline import TEXT, request, run
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import BLOCKS, BY_NAME, save_tiny


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "source", dtype=torch.bfloat16)


Usual = tuple[Path, Finished, Recorder, Path]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Usual:
    """A source, and what a run with the usual options makes of it."""
    source = save_tiny(tmp_path_factory.mktemp("usual") / "source", dtype=torch.bfloat16)
    return source, *run(request(source))


def test_a_smaller_model_that_anyone_can_load(usual: Usual) -> None:
    _, finished, recorder, out = usual
    assert len(finished.removed_blocks) == 2
    assert 0 in finished.kept_blocks
    assert sorted(finished.removed_blocks + finished.kept_blocks) == list(range(BLOCKS))
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == BLOCKS - 2
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(out)("abc")["input_ids"]
    assert recorder.stages == [
        Stage.CALIBRATE,
        Stage.SELECT,
        Stage.SOLVE,
        Stage.FOLD,
        Stage.SAVE,
        Stage.EVALUATE,
    ]


def test_text_that_the_model_writes_itself_and_repeated_passages_calibrate(source: Path) -> None:
    plain = {"dataset": "file:text.txt", "samples": 16, "max_length": 32}
    own = {**plain, "self_generated": 1.0, "repeated": 0.5}
    # a ridge that is named is taken, whatever the map is worth
    named = {"drop": [2, 3], "method": {"ridge": 1e-2}, "evaluation": {"enabled": False}}
    weights, sizes = [], []
    for calibration in (plain, own, own):
        finished, recorder, out = run(request(source, calibration=calibration, **named))
        weights.append((out / "model.safetensors").read_bytes())
        sizes.append(finished.report["captured"]["stream_bytes"])  # type: ignore[index]
        card = (out / "README.md").read_text()
        shutil.rmtree(out)
    assert weights[0] != weights[1] == weights[2]
    # half of the 14 that are fitted on; the text, the general one, repeated passages and questions judge, two of each
    assert 0.98 < sizes[1] / (sizes[0] * (16 + 7 + 4 * 2) / 16) <= 1, "nothing follows the last token that counts"
    assert [fraction for stage, fraction in recorder.fractions if stage is Stage.CALIBRATE][-1] == 1
    assert "text that the original model wrote itself" in card


@pytest.mark.parametrize("loading", ["whole", "blockwise"])
def test_a_result_keeps_a_head_that_only_the_config_ties(loading: str, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", variant=BY_NAME["llama-tied"])
    weights = load_file(source / "model.safetensors")
    head = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file({**weights, "lm_head.weight": head}, source / "model.safetensors", metadata={"format": "pt"})
    compute = {"threads": 1, "dtype": "float32", "loading": loading}
    _, _, out = run(request(source, drop=[2, 3], compute=compute, evaluation={"enabled": False}))
    assert torch.equal(load_file(out / "model.safetensors")["lm_head.weight"], head)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, head)


@pytest.mark.parametrize("method", ["drop", "auto"])
def test_one_block_may_be_left(method: str, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source")
    finished, _, out = run(request(source, ratio=0.99, method={"name": method}, evaluation={"enabled": False}))
    assert finished.report["kept_blocks"] == [0]
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 1


@pytest.mark.parametrize(("name", "expected"), [("gemma2", "A diagonal map"), ("qwen2-moe-mixed", "A linear map")])
def test_other_families_go_the_same_way(name: str, expected: str, tmp_path: Path) -> None:
    variant = BY_NAME[name]
    source = save_tiny(tmp_path / "source", variant=variant, dtype=torch.bfloat16)
    finished, recorder, out = run(request(source, ratio=0.17))
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == BLOCKS - 1
    assert expected in (out / "README.md").read_text()
    (chosen,) = (row for row in finished.report["candidates"] if row["chosen"])  # type: ignore[attr-defined]
    assert chosen["residual"] > 0
    assert recorder.value("residual_check_error") < 1e-5


def test_a_short_text_gives_as_many_samples_as_it_has(source: Path) -> None:
    (source.parent / "text.txt").write_text(TEXT[:15_000], encoding="utf-8")
    open_number = request(source, calibration={"dataset": "file:text.txt", "max_length": 512})
    finished, recorder, _ = run(open_number)
    assert recorder.spec is not None
    samples = recorder.spec.calibration.samples
    assert samples is not None
    assert 20 <= samples < 64
    assert finished.report["spec"]["calibration"]["samples"] == samples  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("fields", "removed", "anchors"),
    [
        ({"method": {"ridge": 0.01}}, None, None),
        ({"method": {"ridge": 0.01}, "drop": [1, 3, 4]}, [1, 3, 4], [0, 2]),
        ({"method": {"name": "drop"}}, None, []),
    ],
    ids=str,
)
def test_only_anchor_blocks_are_changed(
    source: Path, fields: dict[str, object], removed: list[int] | None, anchors: list[int] | None
) -> None:
    """At a requested ridge: with a chosen one the map would not be accepted on a random model."""
    finished, recorder, out = run(request(source, **fields, evaluation={"enabled": False}))
    if removed is not None:
        assert (finished.removed_blocks, finished.kept_blocks) == (removed, [0, 2, 5])
        assert recorder.stages[:2] == [Stage.CALIBRATE, Stage.SOLVE], "nothing is left to choose"
    expected = [min(finished.removed_blocks) - 1] if anchors is None else anchors
    changed = [f"model.layers.{block}.mlp.down_proj.weight" for block in expected]
    assert sorted(changed_weights(source, out, finished)) == changed


def test_what_was_captured_on_fewer_bits_goes_into_the_weights_as_they_are_stored(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", dtype=torch.bfloat16, hidden_size=64, intermediate_size=128)
    asked = {"drop": [3], "method": {"ridge": 0.01}, "evaluation": {"enabled": False}}
    compute = {"threads": 1, "dtype": "float32", "quantization": "4bit"}
    finished, recorder, out = run(request(source, **asked, compute=compute))
    assert changed_weights(source, out, finished) == ["model.layers.2.mlp.down_proj.weight"]
    assert recorder.spec is not None
    assert recorder.spec.compute.quantization == "4bit"
    folded = load_file(out / "model.safetensors")["model.layers.2.mlp.down_proj.weight"].double()
    shutil.rmtree(out)
    full, _, _ = run(request(source, **asked))
    assert changed_weights(source, out, full) == changed_weights(source, out, finished)
    of_full = load_file(out / "model.safetensors")["model.layers.2.mlp.down_proj.weight"].double()
    difference = float((folded - of_full).norm() / of_full.norm())
    assert 0 < difference < 1, "much the same map"


def changed_weights(source: Path, out: Path, finished: Finished) -> list[str]:
    """Names, in the source, of what is in the result with other values."""
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    changed = []
    for name, tensor in after.items():
        origin = name
        if name.startswith("model.layers."):
            index, rest = name.removeprefix("model.layers.").split(".", 1)
            origin = f"model.layers.{finished.kept_blocks[int(index)]}.{rest}"
        if not torch.equal(tensor, before[origin]):
            changed.append(origin)
    return changed


def test_the_report_tells_everything(usual: Usual) -> None:
    source, finished, recorder, out = usual
    report = json.loads((out / "replaceme.json").read_text())
    assert report == finished.report
    assert report["removed_blocks"] == finished.removed_blocks
    assert [row["chosen"] for row in report["candidates"]].count(True) == 1
    assert len(report["candidates"]) == 4
    assert [stage["name"] for stage in report["stages"]] == [str(stage) for stage in recorder.stages]
    assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 1e7 for stage in report["stages"])
    assert report["before"]["blocks"] == BLOCKS
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert report["after"]["bytes"] == (out / "model.safetensors").stat().st_size
    assert report["versions"]["torch"] == version("torch")
    assert report["calibration_texts"][0]["files"] == {"text.txt": sha256_of(source.parent / "text.txt")}
    assert report["model"]["model.safetensors"] == sha256_of(source / "model.safetensors")
    assert report["model"].keys() >= {"config.json", "tokenizer.json"}
    assert report["result"]["model.safetensors"] == sha256_of(out / "model.safetensors")
    assert [set(map(len, report[part].values())) for part in ("tokens", "model", "result")] == [{64}] * 3
    assert (len(report["statistics_key"]), len(report["code"]["digest"])) == (64, 64)
    assert (report["device"]["type"], report["numerics"]["stored_in"]) == ("cpu", "bfloat16")
    assert [row["block"] for row in report["layers"]] == list(range(BLOCKS))
    assert all(0 < row["distance"] < 1 for row in report["layers"])
    assert recorder.spec is not None
    assert report["spec"] == recorder.spec.model_dump(mode="json")
    assert report["spec"]["compute"] == {
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 8,
        "threads": 1,
        "loading": "whole",
        "quantization": None,
        "pattern_safe": False,
    }
    assert recorder.value("before.perplexity") == report["before"]["perplexity"]
    assert recorder.value("after.tokens_per_second") == report["after"]["tokens_per_second"]
    speed = report["after"]["speed"]
    assert recorder.value("after.decode_tokens_per_second") == speed["decode"]["median"]
    assert recorder.value("after.cache_bytes_per_token") == speed["cache_bytes_per_token"]
    assert report["speed_changes"].keys() == {"prefill", "decode"}


def test_metrics_by_stage_and_by_candidate(usual: Usual) -> None:
    _, _, recorder, _ = usual
    for stage in recorder.stages:
        assert {name for at, name, *_ in recorder.metrics if at == stage} >= {"seconds", "peak_memory"}
    residuals = [row for row in recorder.metrics if row[1] == "residual"]
    assert [(row[4], row[5]) for row in residuals] == [(0, "1-2"), (1, "2-3"), (2, "3-4"), (3, "4-5")]
    whole, *rows = [row[2] for row in recorder.metrics if row[1] == "tokens"]
    assert whole == 16 * 32
    assert [rows.index(whole), len(set(rows))] == [2, 2], "of the chosen window all, of the others a part"
    for stage in (Stage.CALIBRATE, Stage.SELECT, Stage.EVALUATE):
        fractions = [fraction for at, fraction in recorder.fractions if at == stage]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


def test_the_same_specification_gives_the_same_bytes(usual: Usual, tmp_path: Path) -> None:
    source, first, recorder, out = usual
    assert recorder.spec is not None
    again = request(source).model_copy(update={"spec": recorder.spec, "output_directory": str(tmp_path / "again")})
    second, _, other = run(again)
    assert second.removed_blocks == first.removed_blocks
    assert (out / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: part-a.jsonl
  - split: test
    path: part-b.jsonl
---
"""


def put_data(hub: Path, name: str) -> None:
    data = hub / "datasets" / name
    data.mkdir(parents=True)
    (data / "README.md").write_text(CARD)
    for part in "ab":
        rows = [json.dumps({"text": f"{name} {index} of part {part}. " * 20}) for index in range(40)]
        (data / f"part-{part}.jsonl").write_text("\n".join(rows))


def test_a_mix_of_all_kinds_of_sources(tmp_path: Path) -> None:
    """From the request to the output, through the steps of API and worker."""
    save_tiny(tmp_path / "hub" / "acme" / "tiny")
    put_data(tmp_path / "hub", "acme/text")
    put_data(tmp_path / "hub", "acme/more")
    (tmp_path / "some.txt").write_text("".join(f"Paragraph {index} of a text.\n\n" for index in range(400)))
    sources = [
        {"self_generated": True, "share": 0.2},
        {"dataset": "acme/text", "split": "test"},
        "acme/more",
        "file:some.txt",
        "builtin:code",
    ]
    asked = CompressionRequest.model_validate(
        {
            "model": "acme/tiny",
            "ratio": 0.34,
            "calibration": {"sources": sources, "samples": 40, "max_length": 32},
            "evaluation": {"samples": 2},
            "compute": {"threads": 1, "dtype": "float32"},
        }
    )
    hub, rules = DirectoryHub(tmp_path / "hub"), OutputRules()
    spec = resolve_request(asked, hub, calibration_root=tmp_path, job_id="0" * 32, rules=rules)
    spec, files = resolve(spec, hub, calibration_root=tmp_path, job_id="0" * 32, rules=rules)
    advanced: list[float] = []
    directory, *paths = fetch(files, lambda: hub, advance=advanced.append, check=read_outline)
    assert advanced == sorted(advanced)
    assert advanced[-1] == 1
    one = RunnerRequest(
        spec=spec,
        model_directory=str(directory),
        calibration_paths=tuple(None if path is None else str(path) for path in paths),
        output_directory=str(tmp_path / "out"),
        hub="https://huggingface.co",
    )
    finished = compress(one, Recorder())
    assert [set(text.names) for text in files[1:]] == [
        set(),
        {"README.md", "part-b.jsonl"},
        {"README.md", "part-a.jsonl"},
        set(),
        set(),
    ]
    assert len(finished.removed_blocks) == 2
    recorded = finished.report["spec"]
    assert isinstance(recorded, dict)
    assert recorded["calibration"]["sources"][1]["revision"] == spec.calibration.mix[1].revision
    card = (tmp_path / "out" / "README.md").read_text()
    assert "datasets:\n- acme/text\n- acme/more\n" in card
    assert "20 % text that the original model wrote itself, 20 % `acme/text` (revision" in card
    assert "20 % the file some.txt and 20 % `code`, a text that comes with the tool." in card
    assert "| acme/text |" in card
