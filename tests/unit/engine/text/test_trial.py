"""Tokenizers that keep native code busy: the system ends a fork, and the model is refused by name."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from replaceme_core.engine.model.load import load_tokenizer
from replaceme_core.engine.text import limits
from replaceme_core.engine.text.limits import ends_badly
from replaceme_core.errors import BrokenModel
from tests.fixtures.models.tiny import save_tiny


def exploding(directory: Path, doublings: int) -> Path:
    """A model whose tokenizer makes 2 to the power of `doublings` letters of each letter."""
    model = save_tiny(directory / "model")
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    double = {"type": "Replace", "pattern": {"Regex": "."}, "content": "aa"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [double] * doublings}
    path.write_text(json.dumps(content))
    return model


def test_a_normaliser_that_takes_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRIAL_BYTES", 2**28)
    with pytest.raises(BrokenModel, match=r"the tokenizer needed more than .* of memory, or crashed \(signal 6\)"):
        load_tokenizer(exploding(tmp_path, 40))


def test_a_normaliser_that_takes_all_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRIAL_SECONDS", 1.0)
    model = exploding(tmp_path, 24)
    with pytest.raises(BrokenModel, match="the tokenizer took more than 1 seconds for a text of"):
        load_tokenizer(model)


def test_an_exception_is_no_bad_end() -> None:
    def fail() -> None:
        raise KeyError

    assert ends_badly(fail) is None
    assert ends_badly(lambda: None) is None


def test_one_that_waits_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRIAL_WALL_SECONDS", 0.2)
    assert ends_badly(lambda: time.sleep(60)) == "took more than 30 seconds"


def test_a_crash(capfd: pytest.CaptureFixture[str]) -> None:
    end = ends_badly(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert end is not None
    assert end.endswith("or crashed (signal 11)")
    assert capfd.readouterr() == ("", "")
