"""What the harness finds out about other processes."""

import subprocess
from pathlib import Path

import psutil

from benchmarks.harness.processes import home_of


def test_a_process_has_its_home_while_it_is_replaced_by_a_program(tmp_path: Path) -> None:
    again = tmp_path / "again.sh"
    again.write_text('exec /bin/sh "$0"\n')
    with subprocess.Popen(["/bin/sh", str(again)], env={"HOME": "/somewhere"}) as replaced:
        process = psutil.Process(replaced.pid)
        found = {home_of(process) for _ in range(2000)}
        replaced.kill()
    assert found == {"/somewhere"}
