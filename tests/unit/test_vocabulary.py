"""The check that keeps private words out of code and documents."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "check_words.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_words", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a bookkeeper's message is a doorbell", "doorbell"),
        ("The Keeper stays", "Keeper"),
        ("def give_back(job): ...", "give_back"),
        ('{"news": "given back"} the job is taken up\n# again later', "taken up # again"),
        ("the runner ended without a last word", "a last word"),
        ('Loading.BLOCKWISE, --loading blockwise, BLOCKWISE = "blockwise", save_blockwise(model)', "blockwise"),
        ("REPLACEME_HUB_PATIENCE_SECONDS, _PATIENCE_SECONDS = 2", "PATIENCE"),
    ],
)
def test_only_words_of_the_list_are_found(check: ModuleType, text: str, word: str) -> None:
    (hit,) = check.find_words(text)
    assert (hit.word, hit.line) == (word, 1)
    assert hit.instead


def test_every_exception_is_used_and_has_a_reason(check: ModuleType) -> None:
    for place, word, reason in check.ALLOWED:
        files = list(check.ROOT.glob(place))
        assert files, place
        assert reason
        assert word == "*" or any(word in file.read_text(encoding="utf-8") for file in files), place
