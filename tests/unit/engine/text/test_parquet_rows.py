"""The process that reads parquet, under limits that its parent has set. What it reads: test_documents.py."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

GIB = 2**30
UNLIMITED = resource.RLIM_INFINITY
READ_UNDER_LIMIT = """
import json, resource, sys
hard = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
from replaceme_core.engine.text.parquet_rows import main
main(sys.argv[1], ["text"])
print(json.dumps(resource.getrlimit(resource.RLIMIT_DATA)))
"""


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_DATA)[1] != UNLIMITED, reason="has a limit of its own")
@pytest.mark.parametrize(
    ("hard", "limits"),
    [(2 * GIB, [2 * GIB, 2 * GIB]), (8 * GIB, [4 * GIB, 8 * GIB]), (UNLIMITED, [4 * GIB, UNLIMITED])],
)
def test_the_hard_limit_of_the_runner_stays(tmp_path: Path, hard: int, limits: list[int]) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    command = [sys.executable, "-c", READ_UNDER_LIMIT, str(path), str(hard)]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    assert list(map(json.loads, done.stdout.splitlines())) == [{"text": None}, {"text": "a"}, limits]
