"""Which Hub the settings name."""

import subprocess
import sys
from pathlib import Path

import pytest

from replaceme_core.errors import AccessDenied
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.open import open_hub
from replaceme_core.settings import Settings


def test_a_directory_under_data_is_made(tmp_path: Path) -> None:
    hub = open_hub(Settings(data=tmp_path, hub=f"dir:{tmp_path}/hub"))
    assert isinstance(hub, DirectoryHub)
    assert (tmp_path / "hub").is_dir()


def test_a_directory_elsewhere_is_not(tmp_path: Path) -> None:
    open_hub(Settings(data=tmp_path / "data", hub=f"dir:{tmp_path}/mount"))
    assert not (tmp_path / "mount").exists()


def test_an_endpoint(tmp_path: Path) -> None:
    hub = open_hub(Settings(data=tmp_path, hub="http://127.0.0.1:9/", hub_read_token="hf_abc"))  # type: ignore[arg-type]
    assert isinstance(hub, HuggingFaceHub)


def test_only_an_endpoint_has_pages_to_link_to(tmp_path: Path) -> None:
    assert Settings(data=tmp_path, hub="http://127.0.0.1:9/").hub_address == "http://127.0.0.1:9"
    assert Settings(data=tmp_path, hub=f"dir:{tmp_path}").hub_address is None


@pytest.mark.parametrize("token", ["hf_Secret\nX-Evil: 1", "hf_Secret with space", "hf_Sécret"])
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(tmp_path: Path, token: str) -> None:
    with pytest.raises(AccessDenied, match="write token") as caught:
        open_hub(Settings(data=tmp_path, hub_write_token=token))  # type: ignore[arg-type]
    assert "cret" not in str(caught.value)


def test_a_line_end_after_a_token_is_no_part_of_it(tmp_path: Path) -> None:
    """Files of secrets end with one."""
    open_hub(Settings(data=tmp_path, hub_write_token="hf_abc\n"))  # type: ignore[arg-type]


def test_the_hub_needs_no_torch_and_the_directory_no_client() -> None:
    script = (
        "import sys, replaceme_core.hub.open, replaceme_core.hub.data_files; "
        "sys.exit(bool({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
