"""A job whose calibration text is a data set of the Hub: the card says which file a split is, on every step alike."""

import json
from pathlib import Path

from replaceme_core.admission.output import OutputRules
from replaceme_core.admission.resolve_request import resolve_request
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.pipeline import compress
from replaceme_core.runner.messages import RunnerRequest
from replaceme_core.spec import CompressionRequest
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import save_tiny
from worker.sources import download, resolve

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


def test_the_split_that_the_card_declares_is_what_is_read(tmp_path: Path) -> None:
    hub_directory = tmp_path / "hub"
    save_tiny(hub_directory / "acme" / "tiny")
    data = hub_directory / "datasets" / "acme" / "text"
    data.mkdir(parents=True)
    (data / "README.md").write_text(CARD)
    for name in ("a", "b"):
        rows = [json.dumps({"text": f"sentence {index} of part {name}. " * 20}) for index in range(40)]
        (data / f"part-{name}.jsonl").write_text("\n".join(rows))
    hub = DirectoryHub(hub_directory)
    request = CompressionRequest.model_validate(
        {
            "model": "acme/tiny",
            "ratio": 0.34,
            "calibration": {"dataset": "acme/text", "split": "test", "samples": 16, "max_length": 32},
            "evaluation": {"samples": 2},
            "compute": {"threads": 1},
        }
    )
    spec = resolve_request(request, hub, calibration_root=None, job_id="0" * 32, rules=OutputRules())
    wanted = resolve(spec, hub, calibration_root=None, job_id="0" * 32, rules=OutputRules())
    assert set(wanted.data_files) == {"README.md", "part-b.jsonl"}
    local = download(wanted, hub, advance=lambda _: None)
    finished = compress(
        RunnerRequest(
            spec=wanted.spec,
            model_directory=str(local.model_directory),
            calibration_path=str(local.calibration_path),
            output_directory=str(tmp_path / "out"),
        ),
        Recorder(),
    )
    assert len(finished.removed_blocks) == 2
    assert "datasets:\n- acme/text" in (tmp_path / "out" / "README.md").read_text()
