"""The service holds what its description says: requests that schemathesis makes from it, with all of its checks.

`REPLACEME_TEST_API_EXAMPLES=2000` makes at least 2,000 of them, with a key and without one.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from benchmarks.harness.processes import WAIT_SECONDS
from benchmarks.harness.servers import PostgresServer
from benchmarks.harness.site import Site
from tests.fixtures.fuzzing.site import SETTINGS, Fuzzed, fuzzed_site

EXAMPLES = int(os.environ.get("REPLACEME_TEST_API_EXAMPLES", "0"))
FOLDER = Path(__file__).parents[2] / "fixtures" / "fuzzing"
LEAST_ACCEPTED = 40
"""Half of the right bodies that `schemathesis.toml` asks for. How many wrong ones there are depends on the fields."""
KEYS = re.compile("[A-Z]+ /keys")


@pytest.fixture
def site(tmp_path: Path, postgres_server: PostgresServer, postgres_template: str, redis_url: str) -> Iterator[Site]:
    with postgres_server.database(template=postgres_template) as url:
        site = Site(data=tmp_path / "data", database_url=url, broker_url=redis_url, extra=dict(SETTINGS))
        yield site
        site.close()


def fuzz(fuzzed: Fuzzed, folder: Path, *, operations: int) -> subprocess.CompletedProcess[str]:
    """Run schemathesis; its report is in the output."""
    (folder / "existing.json").write_text(json.dumps(fuzzed.existing))
    environment = {
        **os.environ,
        "REPLACEME_TEST_EXISTING": str(folder / "existing.json"),
        "SCHEMATHESIS_HOOKS": str(FOLDER / "hooks.py"),
    }
    options = [
        "--phases",
        "examples,coverage,fuzzing,stateful",
        "--max-examples",
        str(max(1, -(-EXAMPLES // operations))),
    ]
    options += ["--request-timeout", str(WAIT_SECONDS), "--continue-on-failure", "--warnings", "off", "--no-shrink"]
    if fuzzed.key is None:  # a key that is created ends the time in which none is needed
        options += ["--exclude-path-regex", "^/keys"]
    else:
        environment["REPLACEME_TEST_KEY"] = "sent"
        options += ["--header", f"Authorization: Bearer {fuzzed.key}"]
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(FOLDER / "schemathesis.toml")]
    return subprocess.run(
        [*command, "run", f"{fuzzed.url}/openapi.json", *options],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )


def statuses_of(fuzzed: Fuzzed, operations: list[str], *, skip: int) -> dict[str, Counter[int]]:
    """How often each operation answered with each status, by the service's own log after its first `skip` lines."""
    patterns = {
        name: re.compile(re.sub(r"{\w+}", "[^/]+", name.replace("/jobs/{job_id}", "/jobs/(?!cancel$){job_id}")))
        for name in operations
    }
    found: dict[str, Counter[int]] = {name: Counter() for name in operations}
    for line in fuzzed.log.read_text().splitlines()[skip:]:
        if not line.startswith("{") or (entry := json.loads(line)).get("event") != "request":
            continue
        for name, pattern in patterns.items():
            if pattern.fullmatch(f"{entry['method']} {entry['path']}"):
                found[name][entry["status"]] += 1
    return found


@pytest.mark.timeout(3600 if EXAMPLES else 900)
@pytest.mark.parametrize("with_key", [True, False] if EXAMPLES else [True])
def test_the_service_holds_what_its_description_says(site: Site, tmp_path: Path, with_key: bool) -> None:
    with fuzzed_site(site, with_key=with_key) as fuzzed:
        paths = httpx2.get(f"{fuzzed.url}/openapi.json", timeout=WAIT_SECONDS, trust_env=False).json()["paths"]
        operations = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
        before = len(fuzzed.log.read_text().splitlines())
        done = fuzz(fuzzed, tmp_path, operations=len(operations))
        assert done.returncode == 0, done.stdout + done.stderr
        statuses = statuses_of(fuzzed, operations, skip=before)
    if not with_key:
        statuses = {name: counts for name, counts in statuses.items() if not KEYS.match(name)}
    probed = {"GET /health", "GET /ready"}  # a health check that succeeds is not logged
    reached = {name for name, counts in statuses.items() if any(200 <= status < 300 for status in counts)}
    assert reached | probed == statuses.keys(), statuses
    assert not [name for name, counts in statuses.items() if any(status >= 500 for status in counts)], statuses
    submitted = statuses["POST /jobs"]
    accepted = sum(count for status, count in submitted.items() if status < 300)
    assert accepted >= LEAST_ACCEPTED, submitted
    assert sum(counts.total() for counts in statuses.values()) >= EXAMPLES
