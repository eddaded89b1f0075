"""Generated text is full and the same each time; hostile chat templates and tokenizers end within their limits."""

import json
import os
import re
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from benchmarks.harness import tiny_models
from replaceme_core.engine.model.decoding import Decoding
from replaceme_core.engine.model.load import load_tokenizer
from replaceme_core.engine.text import limits
from replaceme_core.engine.text.limits import ends_badly, render
from replaceme_core.engine.text.self_generated import (
    CACHE_STEP,
    FEWEST_DIFFERENT,
    _GrowingCache,
    _Row,
    generate_sequences,
    openings,
)
from replaceme_core.errors import BrokenModel
from tests.fixtures.models.tiny import byte_tokenizer, save_tiny, tiny_model

CHAT = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chatty(template: str | None = CHAT) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def write(tokenizer: PreTrainedTokenizerFast, *, count: int = 3, length: int = 24, seed: int = 0) -> torch.Tensor:
    fractions: list[float] = []
    found = generate_sequences(tiny_model(), tokenizer, count=count, length=length, seed=seed, advance=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    return found


def test_sequences_are_full_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.engine.text.self_generated.BATCH_TEXTS", 2)
    first = write(chatty(), length=12)
    assert first.shape == (3, 12)
    assert torch.equal(first, write(chatty(), length=12))
    assert not torch.equal(first, write(chatty(), length=12, seed=1))


def test_they_are_what_the_model_generates() -> None:
    """Each drawn token is among the likeliest of the model, in the place where it stands."""
    model, tokenizer = tiny_model(), chatty(None)
    written = generate_sequences(model, tokenizer, count=2, length=30, seed=3, advance=lambda _: None)
    with torch.inference_mode():
        logits = model(input_ids=written, use_cache=False).logits[:, :-1]
    probability = logits.div(0.8).softmax(-1)
    chosen = probability.gather(2, written[:, 1:, None])
    before = (probability * (probability > chosen + 1e-6)).sum(-1)
    given = torch.isin(written, torch.tensor(tokenizer.eos_token_id))[:, :-1]  # an empty document follows an end
    assert bool((before[~given] <= 0.95 + 1e-3).all())


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "deepseek_v32", "qwen3_next", "lfm2"])
def test_it_reads_the_same_with_whatever_cache_a_model_keeps(model_type: str) -> None:
    """Keys and values, of a window too; an index beside them; states of a recurrence, of a convolution."""
    model = tiny_models.built(tiny_models.tiny_config(model_type, **tiny_models.fitting_sizes(model_type)))
    ids = torch.randint(5, 90, (2, CACHE_STEP + 8), generator=torch.Generator().manual_seed(0))
    growing, own = _GrowingCache(model, length=ids.shape[1]), Decoding(model=model)
    with torch.inference_mode():
        for position, tokens in enumerate(ids.split(1, dim=1), start=1):
            assert torch.allclose(growing.read(tokens, positions=position), own.read(tokens), atol=1e-3)


def text_of(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}", "nothing of what is said"])
def test_without_a_template_that_has_turns_it_writes_documents(template: str | None) -> None:
    found = openings(chatty(template))
    assert found.turns == ()
    assert [next(found.of(row)) for row in range(2)] == [found.document] * 2


def test_every_second_sequence_is_of_conversations() -> None:
    tokenizer = chatty()
    found = openings(tokenizer)
    conversations, documents = found.of(1), found.of(2)
    assert [text_of(tokenizer, next(conversations)) for _ in range(3)] == ["<user>", "<|end|><assistant>", "<user>"]
    assert [next(documents) for _ in range(3)] == [found.document] * 3
    written = write(tokenizer, count=4)
    assert written[:, 0].tolist() == [tokenizer.eos_token_id, *tokenizer("<")["input_ids"]] * 2


def test_a_document_begins_with_what_comes_before_a_text_or_separates_documents_not_turns() -> None:
    """As SmolLM2-Instruct has it: the tokens of turns took the names, and the separator is still there."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|turn|>", "unk_token": "<|endoftext|>"})
    assert openings(tokenizer).document == (tokenizer.unk_token_id,)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|turn|> $A", special_tokens=[("<|turn|>", tokenizer.bos_token_id)]
    )
    assert openings(tokenizer).document == (tokenizer.bos_token_id,)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    assert text_of(tokenizer, openings(tokenizer).document) == "\n", "without special tokens an empty line"


def test_what_opens_a_document_ends_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chatty()
    tokenizer.add_special_tokens({"unk_token": "<|endoftext|>"})
    drawn = tokenizer.unk_token_id
    monkeypatch.setattr(
        "replaceme_core.engine.text.self_generated._draw", lambda logits, **_: [drawn for _ in range(len(logits))]
    )
    conversation = text_of(tokenizer, write(tokenizer, count=2)[1].tolist())
    assert conversation.startswith("<user><|endoftext|><|end|><assistant><|endoftext|>")


def test_a_turn_that_the_model_ends_is_not_ended_twice() -> None:
    def given() -> Iterator[list[int]]:
        yield [7]
        yield [9, 8]
        yield from iter(lambda: [7], None)

    row = _Row(given())
    for token in (0, 5, 9, 0, 6, 9, 0, 1):
        row.append(token, ends={9})
    assert row.ids == [7, 5, 9, 8, 6, 9, 7, 1]


def test_a_text_that_repeats_itself_is_ended() -> None:
    row = _Row(iter(lambda: [7], None))
    row.append(0, ends=())
    for number in range(200):
        row.append(number % 5, ends=())
    assert row.ids[:66] == [7, *(number % 5 for number in range(64)), 7]
    assert row.ids.count(7) == 4

    row = _Row(iter(lambda: [99], None))
    for number in range(200):
        row.append(number % FEWEST_DIFFERENT, ends=())  # a list or a table may have so few
    assert row.ids.count(99) == 1


CONVERSATION = [{"role": "user", "content": "hi"}]
NESTED_RANGES = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3
DOUBLED = "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
CANARY = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch canary') }}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (NESTED_RANGES, "takes more than 0.2 seconds"),
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
    if template == NESTED_RANGES:  # the others must have time to reach their own limit
        monkeypatch.setattr(limits, "TEMPLATE_SECONDS", 0.2)
    monkeypatch.setattr(limits, "TEMPLATE_BYTES", 2**27)
    monkeypatch.setattr(limits, "LONGEST_TEXT", 10**6)
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    with pytest.raises(BrokenModel, match=f"^the chat template .*{re.escape(said)}.*plain and .*self_generated to 0$"):
        render(chatty(template), CONVERSATION)
    assert time.process_time() - began < 10
    assert list(tmp_path.iterdir()) == []


def test_the_limits_are_gone_afterwards() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert render(chatty(), CONVERSATION) == "<user>hi<|end|>"
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert (signal.getitimer(signal.ITIMER_PROF), signal.getsignal(signal.SIGPROF)) == ((0.0, 0.0), signal.SIG_DFL)


def exploding(directory: Path, doublings: int) -> Path:
    """A model whose tokenizer makes 2 to the power of `doublings` letters of each letter."""
    model = save_tiny(directory / "model")
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    double = {"type": "Replace", "pattern": {"Regex": "."}, "content": "aa"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [double] * doublings}
    path.write_text(json.dumps(content))
    return model


@pytest.mark.parametrize(
    ("doublings", "limit", "value", "said"),
    [
        (40, "TRIAL_BYTES", 2**26, r"the tokenizer needed more than .* of memory, or crashed \(signal 6\)"),
        (24, "TRIAL_SECONDS", 0.2, "the tokenizer took more than 0.2 seconds for a text of"),
    ],
)
def test_a_normaliser_without_end(
    doublings: int, limit: str, value: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, limit, value)
    with pytest.raises(BrokenModel, match=said):
        load_tokenizer(exploding(tmp_path, doublings))


def test_one_that_waits_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TRIAL_WALL_SECONDS", 0.2)
    assert ends_badly(lambda: time.sleep(60)) == "took more than 30 seconds"


def test_a_crash(capfd: pytest.CaptureFixture[str]) -> None:
    end = ends_badly(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert end is not None
    assert end.endswith("or crashed (signal 11)")
    assert capfd.readouterr() == ("", "")
