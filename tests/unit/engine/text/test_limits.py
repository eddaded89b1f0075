"""Hostile chat templates and tokenizers end within their limits."""

import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest

from replaceme_core.engine.model.load import load_tokenizer
from replaceme_core.engine.text import limits
from replaceme_core.engine.text.limits import ends_badly, render
from replaceme_core.engine.text.self_generated import openings
from replaceme_core.engine.text.tokens import encode
from replaceme_core.errors import BrokenModel
from tests.fixtures.models.tiny import byte_tokenizer, save_tiny

CONVERSATION = [{"role": "user", "content": "hi"}]
NESTED_RANGES = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
DOUBLED = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
CANARY = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch canary') }}"


def refusal(template: str) -> BrokenModel:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(BrokenModel) as refused:
        render(tokenizer, CONVERSATION)
    assert refused.value.message.startswith("the chat template ")
    return refused.value


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (NESTED_RANGES, "takes more than 1 seconds"),
        (DOUBLED, "needs more than 128 MB"),
        ("{{ 'x' * 10**12 }}", "needs more than 128 MB"),
        ("{% for i in range(90) %}{{ 'x' * 10**5 }}{% endfor %}", "writes more than 1,000,000 characters"),
        ("{{ raise_exception('roles must alternate') }}", "cannot be rendered: TemplateError: roles must alternate"),
        ("{% for m in messages %}", "cannot be rendered: TemplateSyntaxError"),
        ("{{ '\\ud800' }}", "text that is not UTF-8"),
        ("{{ 1 / 0 }}", "cannot be rendered: ZeroDivisionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "cannot be rendered: RecursionError"),
        (CANARY, "cannot be rendered: SecurityError"),
    ],
)
def test_hostile_templates(template: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "TEMPLATE_SECONDS", 1.0)
    monkeypatch.setattr(limits, "TEMPLATE_BYTES", 2**27)
    monkeypatch.setattr(limits, "LONGEST_TEXT", 10**6)
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    assert said in refusal(template).message
    assert time.process_time() - began < 10
    assert list(tmp_path.iterdir()) == []


def test_what_is_encoded_and_split_goes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TEMPLATE_SECONDS", 0.2)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = NESTED_RANGES
    with pytest.raises(BrokenModel, match="chat template takes more"):
        list(encode([CONVERSATION], tokenizer))
    with pytest.raises(BrokenModel, match="chat template takes more"):
        openings(tokenizer)


def test_the_limits_are_gone_afterwards() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert render(tokenizer, CONVERSATION) == "<user>hi"
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert (signal.getitimer(signal.ITIMER_PROF), signal.getsignal(signal.SIGPROF)) == ((0.0, 0.0), signal.SIG_DFL)


def test_another_thread_renders_too() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(render(tokenizer, CONVERSATION)))
    thread.start()
    thread.join()
    assert found == ["hi"]


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
