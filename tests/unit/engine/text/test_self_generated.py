"""Generated text: full sequences, the same each time, with a new opening after each end token."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from replaceme_core.engine.text.self_generated import _end_tokens, _Row, generate_sequences, openings
from replaceme_core.request.defaults import FEWEST_DIFFERENT
from tests.fixtures.models.tiny import byte_tokenizer, tiny_model

CHAT = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chatty(template: str | None = CHAT) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def write(tokenizer: PreTrainedTokenizerFast, *, count: int = 3, length: int = 40, seed: int = 0) -> torch.Tensor:
    fractions: list[float] = []
    found = generate_sequences(tiny_model(), tokenizer, count=count, length=length, seed=seed, advance=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    return found


@pytest.mark.parametrize("template", [None, CHAT])
def test_sequences_are_full_and_the_same_each_time(template: str | None) -> None:
    first = write(chatty(template))
    assert first.shape == (3, 40)
    assert torch.equal(first, write(chatty(template)))
    assert not torch.equal(first, write(chatty(template), seed=1))


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


def test_more_sequences_than_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replaceme_core.engine.text.self_generated.BATCH_TEXTS", 2)
    assert write(chatty(), count=5).shape == (5, 40)


def text_of(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids))


def test_the_template_is_split() -> None:
    tokenizer = chatty()
    found = openings(tokenizer)
    assert found.user is not None
    assert found.assistant is not None
    assert text_of(tokenizer, found.user) == "<user>"
    assert text_of(tokenizer, found.assistant) == "<|end|><assistant>"
    assert found.document == (tokenizer.eos_token_id,)


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}", "nothing of what is said"])
def test_without_a_template_that_has_turns_it_writes_documents(template: str | None) -> None:
    found = openings(chatty(template))
    assert found.user is None
    for row in range(2):
        given = found.of(row)
        assert [next(given) for _ in range(3)] == [found.document] * 3


def test_every_second_sequence_is_of_conversations() -> None:
    tokenizer = chatty()
    found = openings(tokenizer)
    conversations, documents = found.of(1), found.of(2)
    assert [text_of(tokenizer, next(conversations)) for _ in range(3)] == ["<user>", "<|end|><assistant>", "<user>"]
    assert [next(documents) for _ in range(3)] == [found.document] * 3
    written = write(tokenizer, count=4)
    assert written[:, 0].tolist() == [tokenizer.eos_token_id, *tokenizer("<")["input_ids"]] * 2


def test_a_document_begins_with_what_separates_documents_not_turns() -> None:
    """As SmolLM2-Instruct has it: the tokens of turns took the names, and the separator is still there."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|turn|>", "unk_token": "<|endoftext|>"})
    assert openings(tokenizer).document == (tokenizer.unk_token_id,)


def test_a_document_begins_with_what_the_tokenizer_puts_before_a_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "unk_token": "<|endoftext|>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    assert openings(tokenizer).document == (tokenizer.bos_token_id,)


def test_a_tokenizer_without_special_tokens_begins_with_an_empty_line() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    assert text_of(tokenizer, openings(tokenizer).document) == "\n"


def test_the_token_that_opens_a_document_ends_one_too() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|turn|>"})
    ends = _end_tokens(tiny_model(), tokenizer, openings(tokenizer))
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id} <= ends


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
