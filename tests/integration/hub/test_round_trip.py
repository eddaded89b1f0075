"""A pruned model with its card, picture and record: pushed, pulled by others, and made again from what was pulled."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from benchmarks.harness.fake_hub.access import READ_TOKEN
from benchmarks.harness.fake_hub.server import FakeHub
from replaceme_core.engine.pipeline import compress
from replaceme_core.hub.model_files import files_to_download
from replaceme_core.hub.port import Publication, RepositoryKind
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import RunnerRequest
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import BLOCKS, save_tiny
from tests.fixtures.servers.hub import SocketSide, nothing

SOURCE, RESULT = "acme/tiny", "tester/smaller"
PULL = """
import json, sys
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer
place = snapshot_download(sys.argv[1], token=sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(place)
inputs = AutoTokenizer.from_pretrained(place)("The capital", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(json.dumps({"place": place, "layers": model.config.num_hidden_layers, "dtype": str(model.dtype),
                  "tokens": output.shape[1]}))
"""


@dataclass(frozen=True)
class Published:
    fake: FakeHub
    folder: Path


@pytest.fixture
def published(socket_side: SocketSide, tmp_path: Path) -> Published:
    """The result of a model on the fake Hub, published there."""
    source = save_tiny(tmp_path / "tiny", dtype=torch.bfloat16)
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n")
    (source / "NOTICE").write_text("A notice.")
    commit = socket_side.fake.add_model(SOURCE, source)
    hub = socket_side.hub
    snapshot = hub.resolve(SOURCE, kind=RepositoryKind.MODEL)
    assert snapshot.revision == commit.oid
    spec = CompressionSpec.model_validate(
        {
            "model": {"repo_id": SOURCE, "revision": commit.oid},
            "ratio": 0.34,
            "calibration": {"dataset": "builtin:general", "samples": 16, "max_length": 32},
            "method": {"name": "least_squares", "ridge": 0.01},
            "evaluation": {"samples": 2},
            "output": {"repo_id": RESULT},
            "compute": {"device": "cpu", "threads": 1, "dtype": "float32"},
        }
    )
    folder = tmp_path / "result"
    request = RunnerRequest(
        spec=spec,
        model_directory=str(hub.download(snapshot, files_to_download(snapshot, hub))),
        calibration_paths=(None,),
        output_directory=str(folder),
        hub=socket_side.fake.url,
        job_id="6f1c",
    )
    compress(request, Recorder())
    publication = Publication(folder=folder, repo_id=RESULT, private=True, title="Remove blocks", job_id="6f1c")
    hub.publish(publication, before_commit=nothing)
    return Published(fake=socket_side.fake, folder=folder)


def run(published: Published, tmp_path: Path, *arguments: str, **ours: str) -> subprocess.CompletedProcess[str]:
    """Python as a stranger has it: with no settings, no cache and no module path of ours, but these."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS", "TMPDIR") if name in os.environ}
    hub = {"HF_ENDPOINT": published.fake.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, **hub, "HOME": str(tmp_path / "home"), **ours},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def check_that_anybody_can_load_it(published: Published, tmp_path: Path) -> None:
    done = run(published, tmp_path, "-P", "-c", PULL, RESULT, READ_TOKEN)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["layers"], found["dtype"]) == (BLOCKS - 2, "torch.bfloat16")
    place = Path(found["place"])
    pulled = {path.name for path in place.iterdir()} - {".gitattributes"}
    assert pulled == {path.name for path in published.folder.iterdir()}
    assert {"blocks.png", "replaceme.json", "README.md", "NOTICE"} <= pulled
    assert all((place / name).read_bytes() == (published.folder / name).read_bytes() for name in pulled)
    card = ModelCard.load(place / "README.md")
    assert (card.data.base_model, card.data.license) == (SOURCE, "apache-2.0")
    assert f"{published.fake.url}/{SOURCE}/tree/" in card.text


def test_it_is_loaded_and_made_again(published: Published, tmp_path: Path) -> None:
    check_that_anybody_can_load_it(published, tmp_path)
    ours = {
        "REPLACEME_HUB": published.fake.url,
        "REPLACEME_HUB_READ_TOKEN": READ_TOKEN,
        "REPLACEME_DATA": str(tmp_path / "data"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = run(published, tmp_path, "-m", "api.cli", "reproduce", "--json", RESULT, **ours)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["same"], answer["differing"], answer["warnings"]) == (True, [], [])
    assert answer["tensors"] == len(load_file(published.folder / "model.safetensors"))
