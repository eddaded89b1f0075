"""API, PostgreSQL, Redis protocol, worker and the real pipeline together, on a tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from api.client.client import Client
from api.client.errors import Refused
from api.client.models import Job
from benchmarks.harness.site import Site
from tests.fixtures.cli.local import BRIEF_RUNNER, run_here
from tests.fixtures.models.images import make_images, saved_tower
from tests.fixtures.models.tiny import BLOCKS, save_tiny
from tests.fixtures.servers.broker import delete_messages

BRIEF = json.dumps(BRIEF_RUNNER)
REPOSITORY = "acme/real"
SIZE = {"samples": 16, "max_length": 32}
COMPUTE = {"device": "cpu", "dtype": "float32", "batch_size": 4, "threads": 1}


@pytest.fixture(scope="module")
def real_site(tmp_path_factory: pytest.TempPathFactory, postgres_url: str, redis_server: str) -> Iterator[Site]:
    """With a worker, the API, a language model and a tower for images."""
    place = tmp_path_factory.mktemp("site")
    extra = {"REPLACEME_RUNNER_COMMAND": BRIEF, "REPLACEME_CALIBRATION_ROOT": str(place / "texts")}
    site = Site(data=place / "data", database_url=postgres_url, broker_url=redis_server, extra=extra)
    save_tiny(site.hub_directory / REPOSITORY, dtype=torch.bfloat16)
    saved_tower(site.hub_directory / "acme" / "eyes", "clip")
    make_images(place / "texts" / "photos", 60)
    delete_messages(redis_server)
    site.start_worker()
    site.start_api()
    yield site
    site.close()
    delete_messages(redis_server)


@pytest.fixture
def client(real_site: Site) -> Iterator[Client]:
    url = real_site.started[-1].url
    assert url is not None
    with Client(url) as client:
        yield client


def submit(client: Client, **fields: object) -> Job:
    return client.submit(
        {
            "model": REPOSITORY,
            "ratio": 0.34,
            "calibration": {"dataset": "builtin:pydoc-topics", **SIZE},
            "compute": COMPUTE,
            "output": "acme/result",
            **fields,
        }
    )


def wait_for_end(client: Client, job: Job) -> Job:
    for state in client.watch(job.id):
        job = state
    return job


def test_the_service_gives_the_tensors_of_the_command(
    real_site: Site, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = wait_for_end(client, submit(client))
    assert job.status == "succeeded", job.error
    report = client.report(job.id)
    names = {(metric.stage, metric.name) for metric in client.metrics(job.id)}
    assert names >= {("calibrate", "seconds"), ("save", "peak_memory"), ("evaluate", "after.perplexity")}
    published = real_site.hub_directory / "acme" / "result"
    command = ["compress", str(real_site.hub_directory / REPOSITORY), "--out", "deep/out", "--json"]
    command += ["--ratio", "0.34", "--calibration", "builtin:pydoc-topics", "--samples", "16", "--max-length", "32"]
    command += ["--device", "cpu", "--dtype", "float32", "--batch-size", "4", "--threads", "1"]
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    done = run_here(monkeypatch, tmp_path, *command, REPLACEME_RUNNER_COMMAND=BRIEF, TMPDIR=str(tmp_path / "tmp"))
    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*") if path.parent.name != "out") == ["deep", "out", "tmp"]
    out = tmp_path / "deep" / "out"
    here, there = load_file(out / "model.safetensors"), load_file(published / "model.safetensors")
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == BLOCKS - 2
    local, answer = json.loads((out / "replaceme.json").read_text()), json.loads(done.stdout)
    assert answer["removed_blocks"] == report["removed_blocks"]
    assert sorted(answer["removed_blocks"] + answer["kept_blocks"]) == list(range(BLOCKS))
    assert (answer["method"], answer["after"]["blocks"]) == ("auto", BLOCKS - 2)
    assert local["spec"]["model"]["repo_id"] == "local/real"
    assert isinstance(report["spec"], dict)
    for part in ("calibration", "compute", "method", "evaluation", "ratio", "drop"):
        assert local["spec"][part] == report["spec"][part]


def test_a_tower_for_images_from_the_request_to_its_repository(real_site: Site, client: Client) -> None:
    asked = {"model": "acme/eyes", "calibration": "file:photos/", "evaluation": {"samples": 1}, "output": "acme/fewer"}
    for wrong, field in (
        ({"calibration": "builtin:general"}, "calibration"),
        ({"gate": {"perplexity_ratio": {"max": 2}}}, "gate.perplexity_ratio"),
        ({"evaluation": {"tasks": ["piqa"]}}, "evaluation.tasks"),
        ({"model": REPOSITORY}, "calibration"),
    ):
        with pytest.raises(Refused) as caught:
            submit(client, **{**asked, **wrong})
        assert [one.field for one in caught.value.problem.errors or ()] == [field]
    planned = client.plan({**asked, "ratio": 0.34, "compute": COMPUTE})
    assert (planned.model.family, planned.model.supported) == ("clip", True)
    job = wait_for_end(client, submit(client, **asked, gate={"embedding_distance": {"max": 0.9}}))
    assert job.status == "succeeded", job.error
    metrics = {metric.name: metric.value for metric in client.metrics(job.id)}
    assert 0 <= metrics["embedding_distance"] <= 0.9
    assert metrics["after.images_per_second"] > 0
    published: Any = AutoModel.from_pretrained(real_site.hub_directory / "acme" / "fewer")
    assert len(published.vision_model.encoder.layers) == 4
