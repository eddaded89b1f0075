"""docker-compose.yml: what must hold of every service, and that what it names exists."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from api.cli.launch import WORKER_GRACE_SECONDS, worker_command
from benchmarks.harness.checkout import ROOT
from replaceme_core.hardware import WorkerKind
from replaceme_core.settings import Settings
from tests.fixtures.service.deployment import Image, built_services, compose, services

SETTINGS = {f"REPLACEME_{name.upper()}" for name in Settings.model_fields}
DURATION = re.compile(r"\d+s")

every_service = pytest.mark.parametrize("service", services().values(), ids=services().keys())
each_of_ours = pytest.mark.parametrize("service", built_services().values(), ids=built_services().keys())


def is_one_shot(name: str) -> bool:
    waited_for = [each.get("depends_on", {}).get(name, {}).get("condition") for each in services().values()]
    return "service_completed_successfully" in waited_for


@every_service
def test_is_locked_in(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "env_file"} & service.keys()
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"]) or service["image"].startswith("valkey")
    assert all("size=" in mount for mount in service["tmpfs"]), "what lies in memory has a limit"


@every_service
def test_has_limits(service: dict[str, Any]) -> None:
    limits = service["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) > 0
    assert re.fullmatch(r"\d+[mg]", limits["memory"])
    assert limits["pids"] > 0


@pytest.mark.parametrize("name", services())
def test_is_watched_and_started_again_or_ends_by_itself(name: str) -> None:
    service = services()[name]
    if is_one_shot(name):
        assert service["restart"] == "no"
        assert service["healthcheck"] == {"disable": True}, "the image's own asks a server that does not run"
        return
    assert service["restart"] == "unless-stopped"
    check = service["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert all(DURATION.fullmatch(check[each]) for each in ("interval", "timeout", "start_period"))


def test_the_order_of_the_start() -> None:
    for service in services().values():
        for other, how in service.get("depends_on", {}).items():
            assert other in services()
            if how["condition"] == "service_healthy":
                assert "test" in services()[other]["healthcheck"]
            else:
                assert how["condition"] == "service_completed_successfully"
                assert is_one_shot(other)
    assert services()["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker-cpu", "worker-gpu"):
        assert services()[name]["depends_on"].keys() == {"migrate", "valkey"}


def test_secrets_are_files_and_each_is_declared_and_used() -> None:
    declared = compose()["secrets"]
    assert all(each.keys() == {"file"} for each in declared.values())
    used = Counter(secret for service in services().values() for secret in service["secrets"])
    assert used.keys() == declared.keys()
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert all(Path(each["file"]).parts[0] + "/" in ignored for each in declared.values())


def test_the_settings_find_the_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    secrets = [name for name in compose()["secrets"] if name.startswith("replaceme_")]
    for name in secrets:
        (tmp_path / name).write_text(f"value of {name}\n")
    (tmp_path / "replaceme_encryption_key").write_text("A" * 43 + "=\n")  # the one whose form is checked
    settings = Settings(_env_file=None, _secrets_dir=tmp_path)  # type: ignore[call-arg]
    assert settings.model_fields_set == {name.removeprefix("replaceme_") for name in secrets}
    assert settings.database_url == "value of replaceme_database_url"


def test_the_other_secrets_are_named_where_they_are_read() -> None:
    for service in services().values():
        for name in service["secrets"]:
            if not name.startswith("replaceme_"):
                said = [*service.get("command", ()), *service.get("environment", {}).values()]
                assert f"/run/secrets/{name}" in said


@every_service
def test_no_secret_is_in_the_environment(service: dict[str, Any]) -> None:
    for name, value in service.get("environment", {}).items():
        assert not re.search(r"(PASSWORD|TOKEN|SECRET)$", name)
        assert "@" not in value


@each_of_ours
def test_every_setting_exists(service: dict[str, Any]) -> None:
    said = {*service.get("environment", {}), *Image.of(service).environment()}
    assert {name for name in said if name.startswith("REPLACEME_")} <= SETTINGS


def test_one_port_and_only_for_this_machine() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}


def test_what_keeps_the_state_has_no_way_out() -> None:
    assert compose()["networks"]["inside"]["internal"] is True
    for name in ("postgres", "valkey", "migrate"):
        assert services()[name]["networks"] == ["inside"]


@pytest.mark.parametrize("name", ["worker-cpu", "worker-gpu"])
def test_a_worker_keeps_what_is_worth_it(name: str) -> None:
    service = services()[name]
    data = Image.of(service).environment()["REPLACEME_DATA"]
    settings = Settings(data=Path(data), _env_file=None)  # type: ignore[call-arg]
    targets = {target: source for source, _, target in (each.partition(":") for each in service["volumes"])}
    assert targets[str(settings.hub_cache)] in compose()["volumes"]
    assert targets[str(settings.workspace)] in compose()["volumes"]
    assert targets[str(settings.statistics_cache)] in compose()["volumes"]
    assert f"{service['environment']['REPLACEME_CALIBRATION_ROOT']}:ro" in targets
    # while there is no key; and its port is published on this machine only
    of_the_api = {"REPLACEME_ALLOW_UNAUTHENTICATED": "true", "REPLACEME_REQUIRE_KEY": "false"}
    of_the_api |= {"REPLACEME_METRICS_KEY": ""}
    assert {**service["environment"], **of_the_api} == services()["api"]["environment"], "the same files and Hub"


@pytest.mark.parametrize("route", WorkerKind)
def test_a_worker_serves_its_route_and_has_time_to_end(route: WorkerKind) -> None:
    service = services()[f"worker-{route}"]
    assert service["command"] == ["python", *worker_command("--queues", route.value)[1:]]
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    assert int(service["stop_grace_period"].rstrip("s")) >= settings.drain_seconds + WORKER_GRACE_SECONDS


def test_every_volume_is_declared_and_used() -> None:
    mounted = {mount.partition(":")[0] for service in services().values() for mount in service.get("volumes", ())}
    assert {source for source in mounted if not source.startswith((".", "/"))} == compose()["volumes"].keys()


def test_the_profiles() -> None:
    profiles = {name: service["profiles"] for name, service in services().items() if "profiles" in service}
    assert profiles == {"worker-cpu": ["cpu"], "worker-gpu": ["gpu"]}
    (device,) = services()["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "reservations" not in services()["worker-cpu"]["deploy"]["resources"]


@each_of_ours
def test_what_it_builds_exists_and_is_asked_for_as_the_image_says(service: dict[str, Any]) -> None:
    assert service["build"]["context"] == "."
    image = Image.of(service)
    known = {each.arguments.partition("=")[0] for each in image.all("ARG")}
    assert service["build"].get("args", {}).keys() <= known
    assert service["user"] == image.one("USER").arguments
    if "test" in service["healthcheck"]:
        words = [word.replace("$$", "$") for word in service["healthcheck"]["test"]]
        assert words == ["CMD", *image.one("HEALTHCHECK").words()]
