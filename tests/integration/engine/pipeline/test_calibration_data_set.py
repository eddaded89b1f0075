"""A job whose calibration text is a data set of the Hub: the card says which file a split is, on every step alike."""

import json
from pathlib import Path

from replaceme_core.engine.pipeline import compress
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.request.admission import OutputRules, resolve_request
from replaceme_core.request.spec import CompressionRequest
from replaceme_core.runner.inputs import PinnedInputs, download, resolve
from replaceme_core.runner.messages import Finished, RunnerRequest
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import save_tiny

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


def put_data(hub: Path, name: str, words: str, parts: str = "ab") -> None:
    data = hub / "datasets" / name
    data.mkdir(parents=True)
    (data / "README.md").write_text(CARD)
    for part in parts:
        rows = [json.dumps({"text": f"{words} {index} of part {part}. " * 20}) for index in range(40)]
        (data / f"part-{part}.jsonl").write_text("\n".join(rows))


def carried_out(
    hub: DirectoryHub, calibration: object, out: Path, *, texts: Path | None = None
) -> tuple[Finished, PinnedInputs]:
    """A job from its request to its output, through the steps of API and worker."""
    request = CompressionRequest.model_validate(
        {
            "model": "acme/tiny",
            "ratio": 0.34,
            "calibration": calibration,
            "evaluation": {"samples": 2},
            "compute": {"threads": 1, "dtype": "float32"},
        }
    )
    spec = resolve_request(request, hub, calibration_root=texts, job_id="0" * 32, rules=OutputRules())
    pinned = resolve(spec, hub, calibration_root=texts, job_id="0" * 32, rules=OutputRules())
    advanced: list[float] = []
    local = download(pinned, hub, advance=advanced.append)
    assert advanced == sorted(advanced)
    assert advanced[-1] == 1
    paths = tuple(None if path is None else str(path) for path in local.calibration_paths)
    runner_request = RunnerRequest(
        spec=pinned.spec,
        model_directory=str(local.model_directory),
        calibration_paths=paths,
        output_directory=str(out),
        hub="https://huggingface.co",
    )
    return compress(runner_request, Recorder()), pinned


def test_the_split_that_the_card_declares_is_what_is_read(tmp_path: Path) -> None:
    save_tiny(tmp_path / "hub" / "acme" / "tiny")
    put_data(tmp_path / "hub", "acme/text", "sentence")
    calibration = {
        "dataset": "acme/text",
        "split": "test",
        "samples": 16,
        "max_length": 32,
        "self_generated": 0.0,
    }
    finished, pinned = carried_out(DirectoryHub(tmp_path / "hub"), calibration, tmp_path / "out")
    (text,) = pinned.texts
    assert set(text.names) == {"README.md", "part-b.jsonl"}
    assert len(finished.removed_blocks) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "datasets:\n- acme/text" in card
    revision = pinned.spec.calibration.revision
    assert f"Calibration: 16 sequences of 32 tokens (seed 0) of `acme/text` (revision `{revision}`)." in card


def test_a_mix_of_all_kinds_of_sources(tmp_path: Path) -> None:
    save_tiny(tmp_path / "hub" / "acme" / "tiny")
    put_data(tmp_path / "hub", "acme/text", "sentence")
    put_data(tmp_path / "hub", "acme/more", "line")
    (tmp_path / "some.txt").write_text("".join(f"Paragraph {index} of a text.\n\n" for index in range(400)))
    sources = [
        {"self_generated": True, "share": 0.2},
        {"dataset": "acme/text", "split": "test"},
        "acme/more",
        "file:some.txt",
        "builtin:code",
    ]
    calibration = {"sources": sources, "samples": 40, "max_length": 32}
    finished, pinned = carried_out(DirectoryHub(tmp_path / "hub"), calibration, tmp_path / "out", texts=tmp_path)
    assert [set(text.names) for text in pinned.texts] == [
        set(),
        {"README.md", "part-b.jsonl"},
        {"README.md", "part-a.jsonl"},
        set(),
        set(),
    ]
    assert len(finished.removed_blocks) == 2
    spec = finished.report["spec"]
    assert isinstance(spec, dict)
    assert spec["calibration"]["sources"][1]["revision"] == pinned.spec.calibration.mix[1].revision
    card = (tmp_path / "out" / "README.md").read_text()
    assert "datasets:\n- acme/text\n- acme/more\n" in card
    assert "20 % text that the original model wrote itself, 20 % `acme/text` (revision" in card
    assert "20 % the file some.txt and 20 % `code`, a text that comes with the tool." in card
    assert "| acme/text |" in card
