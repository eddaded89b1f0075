"""The images, built without a Docker daemon and without a registry, and started as docker-compose.yml says.

    python -m benchmarks.images build [--worker]
    python -m benchmarks.images test [--worker]

Runs as root, and needs the Debian packages mmdebstrap, podman, buildah, crun and catatonit. The base is a small
Debian, in place of that of the Dockerfiles; `TORCH` and `TORCH_INDEX` in the environment are passed on. `test` starts a
migration, the API and a worker beside PostgreSQL and Valkey: with a read-only root, without capabilities, as user
10001. Without `--worker` the worker runs from this checkout.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import yaml
from sqlalchemy import make_url

from benchmarks.harness.checkout import ROOT
from benchmarks.harness.processes import wait_until
from benchmarks.harness.servers import free_port, start_postgres, start_valkey
from benchmarks.shape import make_model

SUITE, BASE = "trixie", "localhost/replaceme-base"
PROGRAMS = ("mmdebstrap", "podman", "buildah", "crun", "catatonit")
PACKAGES = "python3,python-is-python3,ca-certificates"
BUILD_PACKAGES = "binutils python3-pip python3-venv"
LEFT_OUT = ("bash-completion", "doc", "info", "lintian", "locale", "man")
REMOVED = ("usr/lib/python3.*/test", "var/cache/debconf/*")
LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=20000:20000")
USER = 10001
MODEL = "acme/tiny"
TINY = {"width": 32, "inner": 48, "blocks": 8, "heads": 4, "key_value_heads": 2, "length": 256, "device": None}


def image_of(name: str) -> str:
    return f"localhost/replaceme-{name}"


def check_programs() -> None:
    missing = [one for one in PROGRAMS if shutil.which(one) is None and not Path(f"/usr/libexec/{one}").exists()]
    if missing or os.geteuid() != 0:
        raise SystemExit(f"run this as root, with these Debian packages: {' '.join(missing or PROGRAMS)}")


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    print("+", *command[:4], "...", flush=True)
    return subprocess.run(command, check=True, text=True, **options)


def build(names: Sequence[str]) -> None:
    """Build the images `names`, and the base if it is not there yet; print their sizes."""
    _make_base()
    for name in names:
        kind = name.partition("-")[0]
        given: list[str] = []
        # of machines that reach the registries in a way of their own
        for path in {"/etc/pip.conf", *(os.environ.get(one, "") for one in ("SSL_CERT_FILE", "PIP_FIND_LINKS"))}:
            given += ["-v", f"{path}:{path}:ro"] if path and Path(path).exists() else []
        if kind == "worker":
            for variable in ("TORCH_INDEX", "TORCH"):
                given += ["--build-arg", f"{variable}={os.environ[variable]}"] if variable in os.environ else []
        file = ROOT / "docker" / f"{kind}.Dockerfile"
        isolated = ("--format", "docker", "--isolation", "chroot", "--network", "host", "--pull=never")
        run("buildah", "build", *isolated, *LIMITS, *given, "--build-arg", f"BASE={BASE}",
            "--build-arg", f"BUILD_PACKAGES={BUILD_PACKAGES}", "-f", str(file), "-t",
            image_of(name), str(ROOT))  # fmt: skip
    run("podman", "images")


def _make_base() -> None:
    if subprocess.run(["podman", "image", "exists", BASE], check=False).returncode:
        with tempfile.TemporaryDirectory() as folder:
            left_out = [f"--dpkgopt=path-exclude=/usr/share/{one}/*" for one in LEFT_OUT]
            removed = "--customize-hook=rm -r " + " ".join(f'"$1"/{one}' for one in REMOVED)
            run("mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", *left_out, removed, SUITE,
                f"{folder}/base.tar")  # fmt: skip
            run("podman", "import", f"{folder}/base.tar", BASE)


@contextmanager
def container(name: str, image: str, command: Sequence[str], options: Sequence[str], log: Path) -> Iterator[str]:
    """A container that runs as the compose file says, ended by SIGTERM; its name."""
    full = f"replaceme-test-{name}-{os.getpid()}"
    confined = ("--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges")
    podman = ("podman", "run", "--rm", "--name", full, "--network", "host", "--cgroups=disabled", *LIMITS, *confined)
    own = ("--user", f"{USER}:{USER}", "--init", "--tmpfs", "/tmp", "--tmpfs", "/dev/shm")
    # crun refuses the hybrid hierarchy of control groups of older machines
    script = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
    outer = ("unshare", "-m", "sh", "-c", script, "sh")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*outer, *podman, *own, *options, image, *command], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield full
        except BaseException:
            print(f"{name}: {log.read_text()[-3000:]}", flush=True)
            raise
        finally:
            began = time.monotonic()
            subprocess.run(["podman", "stop", "--time", "30", full], check=False, capture_output=True)
            process.wait(timeout=60)
            print(f"{name}: ended after {time.monotonic() - began:.1f} s", flush=True)
    assert time.monotonic() - began < 29, f"{name} was killed"
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


def test(*, with_worker: bool) -> None:
    """A job from its submission to its publication, through containers; then a stop and a start with the same data."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        place.chmod(0o755)
        postgres, valkey = stack.enter_context(start_postgres()), stack.enter_context(start_valkey())
        own = make_url(stack.enter_context(postgres.server.database()))
        port = _forwarded(f"{own.query['host']}/.s.PGSQL.5432")
        url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/{own.database}"
        secrets, hub, data = (place / name for name in ("secrets", "hub", "data"))
        for one in (secrets, hub, data):
            one.mkdir()
        make_model(hub / MODEL, argparse.Namespace(**TINY))
        (secrets / "replaceme_database_url").write_text(url)
        (secrets / "replaceme_broker_url").write_text(valkey.url)
        (secrets / "replaceme_encryption_key").write_text("A" * 43 + "=")
        run("chown", "-R", f"{USER}:{USER}", str(hub), str(data))
        settings = {"REPLACEME_HUB": "dir:/hub", "REPLACEME_OUTPUT_NAMESPACES": "acme"}
        mounts = ["-v", f"{secrets}:/run/secrets:ro", "-v", f"{hub}:/hub"]
        mounts += [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
        with container("help", image_of("api"), ["replaceme", "--help"], (), place / "help.log"):
            wait_until(lambda: "Compress language models" in (place / "help.log").read_text(), seconds=30, what="help")
        with container("bill", image_of("api"), ["cat", "/opt/replaceme/sbom.cdx.json"], (), place / "bill.log"):
            wait_until(lambda: "fastapi" in _components(place / "bill.log"), seconds=30, what="the bill of materials")
        with container("migrate", image_of("api"), compose["migrate"]["command"], mounts, place / "migrate.log"):
            wait_until(lambda: _is_migrated(url), seconds=60, what="the migration")
        port = free_port()
        command = ["python", "-m", "api.http.server", "--host", "127.0.0.1", "--port", str(port)]
        of_api = (*mounts, "--tmpfs", "/data:mode=1777")
        worker = compose["worker-cpu"]["command"]
        of_worker = (*mounts, "-v", f"{data}:/data")
        for attempt in ("first", "second"):  # a restart finds what the first start has left
            with ExitStack() as running:
                name = running.enter_context(
                    container("api", image_of("api"), command, of_api, place / f"api-{attempt}.log")
                )
                client = running.enter_context(httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False))
                wait_until(lambda one=client: _is_ready(one), seconds=60, what="a ready API")  # type: ignore[misc]
                check = [word.replace("8000", str(port)) for word in compose["api"]["healthcheck"]["test"][1:]]
                run("podman", "exec", name, *check)
                if with_worker:
                    log = place / f"worker-{attempt}.log"
                    name = running.enter_context(container("worker", image_of("worker-cpu"), worker, of_worker, log))
                    wait_until(lambda log=log: " ready." in log.read_text(), seconds=90, what="a worker")  # type: ignore[misc]
                    asked = [word.replace("$$", "$") for word in compose["worker-cpu"]["healthcheck"]["test"][1:]]
                    run("podman", "exec", name, *asked)
                else:
                    running.enter_context(_worker_of_the_checkout(place, url, valkey.url))
                job = _submit(client)
                page = client.get(job["links"]["report"], headers={"Accept": "text/html"}, timeout=60)
                assert '<img src="data:image/svg' in page.raise_for_status().text
                assert job["result"]["repo_id"].startswith("acme/"), job
                assert (hub / job["result"]["repo_id"] / "replaceme.json").exists()
                print(f"{attempt} start: {job['result']['repo_id']}, blocks {job['result']['removed_blocks']} removed")
    print("the images work")


def _forwarded(path: str) -> int:
    """A TCP port of this machine that leads to a Unix socket, which lies where only its own user may enter."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(path)
            for pair in ((client, server), (server, client)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def _components(log: Path) -> set[str]:
    """The names in a CycloneDX file that was printed, after warnings of the engine."""
    try:
        return {one["name"] for one in json.loads("{" + log.read_text().partition("{")[2])["components"]}
    except (json.JSONDecodeError, KeyError):
        return set()


def _is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/ready").status_code == httpx2.codes.OK
    except httpx2.HTTPError:
        return False


def _is_migrated(url: str) -> bool:
    from replaceme_core.errors import ReplaceMeError
    from replaceme_core.ledger.database import Database
    from replaceme_core.ledger.migrate import check_migrated

    database = Database(url)
    try:
        with database.session(read_only=True) as session:
            check_migrated(session)
    except ReplaceMeError:
        return False
    finally:
        database.close()
    return True


def _submit(client: httpx2.Client) -> dict[str, Any]:
    text = {"dataset": "builtin:pydoc-topics", "samples": 16, "max_length": 64}
    body = {"model": MODEL, "ratio": 0.25, "method": "least_squares", "calibration": text, "evaluation": {"samples": 4}}
    job = client.post("/jobs", json=body).raise_for_status().json()
    there = job["links"]["self"]

    def has_ended() -> bool:
        job.update(client.get(there).json())
        return job["status"] in ("succeeded", "failed", "cancelled")

    wait_until(has_ended, seconds=240, what="the end of the job")
    assert job["status"] == "succeeded", json.dumps(job["error"])
    found: dict[str, Any] = job
    return found


@contextmanager
def _worker_of_the_checkout(place: Path, url: str, broker: str) -> Iterator[None]:
    environment = {
        **os.environ,
        "REPLACEME_DATABASE_URL": url,
        "REPLACEME_BROKER_URL": broker,
        "REPLACEME_HUB": f"dir:{place / 'hub'}",
        "REPLACEME_DATA": str(place / "own"),
        "REPLACEME_OUTPUT_NAMESPACES": "acme",
    }
    command = [str(Path(sys.executable).with_name("replaceme")), "worker"]
    with (place / "own.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the images, or start them.")
    parser.add_argument("what", choices=["build", "test"])
    parser.add_argument("--worker", action="store_true", help="that of the worker, too: two gigabytes")
    options = parser.parse_args()
    check_programs()
    if options.what == "build":
        build(["api", *(["worker-cpu"] if options.worker else [])])
    else:
        test(with_worker=options.worker)


if __name__ == "__main__":
    main()
