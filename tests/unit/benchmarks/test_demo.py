"""What the demo shows of a service that it leaves running."""

import io

from rich.console import Console

from benchmarks.demo import show_service


def test_the_address_of_the_dashboard_comes_last() -> None:
    console = Console(file=io.StringIO(), width=80, markup=False)
    show_service(console, "http://127.0.0.1:8123", job_id="5d0e")
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[-1] == "http://127.0.0.1:8123/"
    assert "replaceme status 5d0e --url http://127.0.0.1:8123" in lines
