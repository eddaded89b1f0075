"""docker-compose.yml and the Dockerfiles: what must hold of every service and image, and that what they name exists."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from api.cli import launch
from benchmarks.harness.checkout import ROOT
from replaceme_core.hardware import WorkerKind
from replaceme_core.settings import Settings
from tests.fixtures.service.deployment import (
    DOCKERFILES,
    Image,
    built_services,
    compose,
    locked,
    project,
    services,
    words,
)

SETTINGS = {f"REPLACEME_{name.upper()}" for name in Settings.model_fields}
DURATION = re.compile(r"\d+s")
API, WORKER = (Image.read(ROOT / "docker" / f"{name}.Dockerfile") for name in ("api", "worker"))

each_service = pytest.mark.parametrize("name", services())
each_of_ours = pytest.mark.parametrize("service", built_services().values(), ids=built_services().keys())
each_image = pytest.mark.parametrize("image", [API, WORKER], ids=["api", "worker"])


def is_one_shot(name: str) -> bool:
    waited_for = [each.get("depends_on", {}).get(name, {}).get("condition") for each in services().values()]
    return "service_completed_successfully" in waited_for


@each_service
def test_a_service_is_locked_in_limited_and_watched(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "env_file"} & service.keys()
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"]) or service["image"].startswith("valkey")
    assert all("size=" in mount for mount in service["tmpfs"]), "what lies in memory has a limit"
    limits = service["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) > 0
    assert re.fullmatch(r"\d+[mg]", limits["memory"])
    assert limits["pids"] > 0
    check = service["healthcheck"]
    if is_one_shot(name):
        assert service["restart"] == "no"
        assert check == {"disable": True}, "the image's own asks a server that does not run"
    else:
        assert service["restart"] == "unless-stopped"
        assert check["test"][0] in ("CMD", "CMD-SHELL")
        assert all(DURATION.fullmatch(check[each]) for each in ("interval", "timeout", "start_period"))


def test_the_order_of_the_start() -> None:
    assert services()["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker-cpu", "worker-gpu"):
        assert services()[name]["depends_on"].keys() == {"migrate", "valkey"}


def test_secrets_are_files_that_the_settings_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = compose()["secrets"]
    assert all(each.keys() == {"file"} for each in declared.values())
    assert Counter(secret for service in services().values() for secret in service["secrets"]).keys() == declared.keys()
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert all(Path(each["file"]).parts[0] + "/" in ignored for each in declared.values())
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    ours = [name for name in declared if name.startswith("replaceme_")]
    for name in ours:
        (tmp_path / name).write_text(f"value_of_{name}\n")
    (tmp_path / "replaceme_encryption_key").write_text("A" * 43 + "=\n")  # the one whose form is checked
    settings = Settings(_env_file=None, _secrets_dir=tmp_path)  # type: ignore[call-arg]
    assert settings.model_fields_set == {name.removeprefix("replaceme_") for name in ours}
    assert settings.database_url == "value_of_replaceme_database_url"


def test_no_secret_is_in_the_environment() -> None:
    for service in services().values():
        environment = service.get("environment", {})
        assert not [name for name in environment if re.search(r"(PASSWORD|TOKEN|SECRET)$", name)]
        assert not [value for value in environment.values() if "@" in value]
        for name in service["secrets"]:
            if not name.startswith("replaceme_"):
                assert f"/run/secrets/{name}" in [*service.get("command", ()), *environment.values()]


def test_one_port_only_for_this_machine_and_no_way_out_for_what_keeps_the_state() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}
    assert compose()["networks"]["inside"]["internal"] is True
    for name in ("postgres", "valkey", "migrate"):
        assert services()[name]["networks"] == ["inside"]


@pytest.mark.parametrize("kind", WorkerKind)
def test_a_worker_keeps_what_is_worth_it_and_has_time_to_end(kind: WorkerKind) -> None:
    service = services()[f"worker-{kind}"]
    data = Image.of(service).environment()["REPLACEME_DATA"]
    settings = Settings(data=Path(data), _env_file=None)  # type: ignore[call-arg]
    targets = {target: source for source, _, target in (each.partition(":") for each in service["volumes"])}
    for kept in (settings.hub_cache, settings.workspace, settings.statistics_cache):
        assert targets[str(kept)] in compose()["volumes"]
    assert f"{service['environment']['REPLACEME_CALIBRATION_ROOT']}:ro" in targets
    # while there is no key; and its port is published on this machine only
    of_the_api = {"REPLACEME_ALLOW_UNAUTHENTICATED": "true", "REPLACEME_REQUIRE_KEY": "false"}
    of_the_api |= {"REPLACEME_METRICS_KEY": ""}
    assert {**service["environment"], **of_the_api} == services()["api"]["environment"], "the same files and Hub"
    assert service["command"] == ["python", *launch.worker_command("--queues", kind.value)[1:]]
    seconds = settings.drain_seconds + launch.WORKER_GRACE_SECONDS
    assert int(service["stop_grace_period"].rstrip("s")) >= seconds
    assert service["profiles"] == [kind.value]


def test_only_a_gpu_worker_has_a_gpu() -> None:
    (device,) = services()["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "reservations" not in services()["worker-cpu"]["deploy"]["resources"]


@each_of_ours
def test_what_a_service_builds_exists_and_is_asked_for_as_the_image_says(service: dict[str, Any]) -> None:
    image = Image.of(service)
    assert service["build"]["context"] == "."
    assert service["build"].get("args", {}).keys() <= {each.partition("=")[0] for each in image.all("ARG")}
    assert service["user"] == image.one("USER")
    if "test" in service["healthcheck"]:
        asked = [word.replace("$$", "$") for word in service["healthcheck"]["test"]]
        assert asked == ["CMD", *words(image.one("HEALTHCHECK"))]
    said = {*service.get("environment", {}), *image.environment()}
    assert {name for name in said if name.startswith("REPLACEME_")} <= SETTINGS


def test_an_image_installs_what_its_lock_names_and_that_of_the_api_has_no_torch() -> None:
    assert {ROOT / service["build"]["dockerfile"] for service in built_services().values()} == set(DOCKERFILES)
    common, extras = project()["project"]["dependencies"], project()["project"]["optional-dependencies"]
    model_side = {"torch", "transformers", "pyarrow", "safetensors"}
    assert locked("api").keys() & model_side == set()
    assert locked("worker").keys() & model_side == model_side - {"torch"}
    for name, own in {
        "api": ["api", "plot", "telemetry"],
        "worker": ["worker", "plot", "heal", "tasks", "telemetry"],
    }.items():
        versions = locked(name)
        for each in map(Requirement, [*common, *(one for extra in own for one in extras[extra])]):
            if each.name not in ("replaceme", "torch"):
                assert each.specifier.contains(versions[canonicalize_name(each.name)]), f"make lock: {each.name}"
    assert [Requirement(each).name for each in extras["quantized"]] == list(locked("quantized"))
    assert not {name for name, version in locked("api").items() if locked("worker").get(name, version) != version}
    for image in (API, WORKER):
        installs = [one for run in image.all("RUN") for one in run.split("&&") if " install " in one and "pip" in one]
        assert all("--require-hashes" in one or "--no-deps /wheels/" in one or "${TORCH}" in one for one in installs)
    assert "torch" not in str(API.instructions)
    (installed,) = re.findall(r"^TORCH=(.+)$", "\n".join(WORKER.all("ARG")), flags=re.MULTILINE)
    assert installed in extras["worker"], "in the range of the extra"


@each_image
def test_an_image_builds_in_one_stage_and_runs_in_another_as_nobody_special(image: Image) -> None:
    final = image.since_last("FROM")
    assert len(image.all("FROM")) == 2
    assert len({each.split()[0] for each in image.all("FROM")}) == 1, "the environment links its interpreter"
    assert final.all("COPY") == ["--from=build /opt/replaceme /opt/replaceme"]
    assert final.environment()["PATH"].startswith("/opt/replaceme/bin:")
    assert not [each for each in final.all("RUN") if "pip" in each]
    assert all(int(number) >= 1000 for number in final.one("USER").split(":"))
    after = image.since_last("USER").instructions
    assert {keyword for keyword, _ in after} <= {"USER", "EXPOSE", "HEALTHCHECK", "CMD"}
    assert "python" in image.one("HEALTHCHECK")
    assert not re.search(r"\b(curl|wget)\b", str(image.instructions))


def test_what_is_started_is_what_serve_starts() -> None:
    assert words(API.one("CMD")) == ["python", *launch.api_command("0.0.0.0", 8000)[1:]]
    assert words(WORKER.one("CMD")) == ["python", *launch.worker_command()[1:]]
    assert "REMAP_SIGTERM" not in WORKER.environment(), "a worker that is stopped first lets its job go on for a while"
    assert services()["migrate"]["command"] == ["python", "-m", "migrations"]


@each_image
def test_the_engine_is_given_what_is_copied_and_no_more(image: Image) -> None:
    everything, *rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert everything == "*"
    given = {rule[1:] for rule in rules if rule.startswith("!")}
    named = [source for each in image.all("COPY") if "--from" not in each for source in each.split()[:-1]]
    copied = {"docker/locks" if source.startswith("docker/locks/") else source.removeprefix("./") for source in named}
    packages = {pattern.rstrip("*") for pattern in project()["tool"]["setuptools"]["packages"]["find"]["include"]}
    about = project()["project"]
    assert (
        copied
        == given
        == packages
        | {
            "pyproject.toml",
            about["readme"],
            *about["license-files"],
            "docker/slim.sh",
            "docker/locks",
        }
    )
    assert all((ROOT / name).exists() for name in given)


def test_a_linter_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", *DOCKERFILES], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def test_what_a_job_imports_is_compiled_where_the_file_system_is_read_only() -> None:
    """Each job starts a process, which would compile torch and transformers in memory: 12.6 s instead of 5.0 s."""
    (compiled,) = [one.split() for run in WORKER.all("RUN") for one in run.split("&&") if "slim.sh" in one]
    assert "replaceme_core.engine.pipeline" in compiled
