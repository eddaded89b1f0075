"""What the record says of the machine and its libraries."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from replaceme_core.results import provenance


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-library"))
    found = provenance._versions()
    assert found.keys() == {"python", "torch"}
    assert found["torch"] == version("torch")


def test_the_processor_has_the_name_that_people_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(provenance, "CPU_INFO", path)
    assert provenance.hardware_name(torch.device("cpu")), "where the system does not say"
    path.write_text("processor\t: 0\nmodel name\t: A Processor @ 3 GHz\nflags\t: avx2\n")
    assert provenance.hardware_name(torch.device("cpu")) == "A Processor @ 3 GHz"
