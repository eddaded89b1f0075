"""A worker's temporary files: in its data directory, and gone however it ends."""

from pathlib import Path

from benchmarks.harness.processes import wait_until
from benchmarks.harness.site import Site
from replaceme_core.ledger.states import JobStatus
from worker.workspace import TEMPORARY


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []


def test_nothing_is_left_in_the_systems_directory(embedded_site: Site, tmp_path: Path) -> None:
    site, system = embedded_site, tmp_path / "system"
    ours = site.settings.workspace / TEMPORARY  # the data directory itself need not be writable
    system.mkdir()
    site.extra = {"TMPDIR": str(system)}
    worker = site.start_worker(name="w1")
    assert site.wait_for_end(site.add()).status is JobStatus.SUCCEEDED
    held = names(ours)
    assert len(held) == 2, "a directory and its lock"
    worker.kill_tree()
    assert names(ours) == held
    other = site.start_worker(name="w2")
    wait_until(lambda: not set(held) & set(names(ours)), seconds=20, what="a sweep takes away what was left")
    assert site.wait_for_end(site.add()).status is JobStatus.SUCCEEDED
    assert other.stop() == 0
    assert names(ours) == []
    assert names(system) == []
