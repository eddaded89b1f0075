import pytest

from replaceme_core.engine.text.tokens import encode, pack
from replaceme_core.errors import InvalidInput
from tests.fixtures.models.tiny import byte_tokenizer

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def text_of(ids: list[int]) -> str:
    return byte_tokenizer().decode(ids)


def test_sequences_are_full_and_nothing_is_padded() -> None:
    tokenizer = byte_tokenizer()
    packed = pack(encode(["abcdefg", "hij"], tokenizer), tokenizer, length=4, limit=100).sequences
    assert packed.shape == (3, 4)
    assert [text_of(row.tolist()) for row in packed] == ["abcd", "efg<|end|>", "hij<|end|>"]


def test_what_is_left_over_is_cut_off() -> None:
    tokenizer = byte_tokenizer()
    assert pack(encode(["abcdef"], tokenizer), tokenizer, length=4, limit=100).sequences.shape == (1, 4)
    assert pack(encode([], tokenizer), tokenizer, length=4, limit=100).sequences.shape == (0, 4)


def test_reading_stops_at_the_limit() -> None:
    def endless():  # type: ignore[no-untyped-def]
        while True:
            yield "abcdefgh"

    tokenizer = byte_tokenizer()
    assert pack(encode(endless(), tokenizer), tokenizer, length=4, limit=5).sequences.shape == (5, 4)


def test_a_running_text_has_no_ends_inside() -> None:
    tokenizer = byte_tokenizer()
    packed = pack(encode(["ab", "cd", "ef"], tokenizer, running_text=True), tokenizer, length=6, limit=1).sequences
    assert text_of(packed[0].tolist()) == "abcdef"


def test_a_beginning_token_leads_each_sequence_where_the_tokenizer_adds_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    packed = pack(encode(["abcdefgh"], tokenizer, running_text=True), tokenizer, length=5, limit=9).sequences
    assert packed[:, 0].tolist() == [begin, begin]
    assert text_of(packed[1, 1:].tolist()) == "efgh"


CONVERSATION = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize(
    ("template", "has", "expected"),
    [
        ("auto", True, "<user>hi<assistant>yo"),
        ("chat", True, "<user>hi<assistant>yo"),
        ("plain", True, "hi\n\nyo"),
        ("auto", False, "hi\n\nyo"),
    ],
)
def test_conversations_go_through_the_template_where_there_is_one(template: str, has: bool, expected: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT if has else None
    (ids,) = encode([CONVERSATION], tokenizer, template=template)
    assert text_of(ids) == expected + "<|end|>"


def test_asking_for_a_template_that_is_not_there_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="no chat template"):
        list(encode([CONVERSATION], byte_tokenizer(), template="chat"))
