"""A built wheel, installed apart from the checkout: what is in it, and that it serves."""

import zipfile
from pathlib import Path

import httpx2

from benchmarks.harness.checkout import ROOT
from tests.fixtures.service.serve import assert_gone, served
from tests.fixtures.service.wheel import Installed

PACKAGES = ("api", "migrations", "replaceme_core", "worker")


def test_a_wheel_carries_its_licence_and_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """Templates, style sheets, scripts and the like too, wherever they lie."""
    there = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = (name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert shipped == there
    assert {"api/py.typed", "replaceme_core/py.typed"} < shipped, "type checkers read no other annotations"
    assert {"migrations/env.py", "migrations/script.py.mako", "migrations/versions/0012_ledger.py"} < shipped


def test_an_installed_wheel_serves(installed_wheel: Installed, tmp_path: Path) -> None:
    body = {"model": "acme/unheard-of", "ratio": 0.25, "calibration": "builtin:pydoc-topics"}
    with served(tmp_path, command=[str(installed_wheel.command)]) as serve:
        family = serve.family()
        interpreters = {process.cmdline()[0] for process in family}
        assert interpreters == {str(installed_wheel.python)}, "the parts run what was installed"
        with httpx2.Client(base_url=serve.url, timeout=30, trust_env=False) as client:
            assert client.get("/ready").status_code == 200
            assert "There are no jobs yet" in client.get("/", follow_redirects=True).text
            refused = client.post("/jobs", json=body)
            assert refused.status_code == 422, refused.text
            assert [error["field"] for error in refused.json()["errors"]] == ["model"]
        assert serve.stop() == 0
        assert_gone(family)
