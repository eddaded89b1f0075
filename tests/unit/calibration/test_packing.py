import pytest
import torch

from replaceme_core.calibration.packing import POOL_FACTOR, Packed, draw, encode, pack
from replaceme_core.errors import CalibrationTooSmall, InvalidInput
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


def packed(sequences: torch.Tensor) -> Packed:
    return Packed(sequences=sequences, tokens=sequences.numel())


def test_sets_are_disjoint_and_the_seed_decides() -> None:
    sequences = packed(torch.arange(40).reshape(20, 2))
    drawn = draw(sequences, samples=8, held_out=2, measure=5, seed=3)
    assert (len(drawn.fit), len(drawn.held_out), len(drawn.measure)) == (6, 2, 5)
    firsts = torch.cat([drawn.fit, drawn.held_out, drawn.measure])[:, 0].tolist()
    assert len(set(firsts)) == 13
    again, other = (draw(sequences, samples=8, held_out=2, measure=5, seed=seed) for seed in (3, 4))
    assert torch.equal(again.fit, drawn.fit)
    assert not torch.equal(other.fit, drawn.fit)


def test_fit_and_held_out_tokens_come_from_all_parts_of_the_text() -> None:
    """One sequence out of each equal part, and every so many parts one that is held out."""
    sequences = packed(torch.arange(160).reshape(160, 1))
    for seed in range(5):
        drawn = draw(sequences, samples=32, held_out=4, measure=7, seed=seed)
        firsts = torch.cat([drawn.fit, drawn.held_out])[:, 0]
        assert sorted(int(first) // 5 for first in firsts) == list(range(32))
        assert sorted(int(first) // 40 for first in drawn.held_out[:, 0]) == list(range(4))


def test_what_calibrates_is_the_same_whether_something_is_measured_or_not() -> None:
    sequences = packed(torch.arange(50).reshape(50, 1))
    with_measure, without = (draw(sequences, samples=16, held_out=2, measure=measure, seed=0) for measure in (9, 0))
    assert torch.equal(with_measure.fit, without.fit)
    assert torch.equal(with_measure.held_out, without.held_out)


def test_only_so_much_of_a_long_text_is_drawn_from() -> None:
    drawn = draw(packed(torch.arange(1000).reshape(1000, 1)), samples=4, held_out=1, measure=0, seed=0)
    assert int(torch.cat([drawn.fit, drawn.held_out]).max()) < POOL_FACTOR * 4


def test_no_text_at_all_may_be_wanted() -> None:
    """The model writes everything itself."""
    drawn = draw(packed(torch.zeros(3, 8, dtype=torch.long)), samples=0, held_out=0, measure=1, seed=0)
    assert (len(drawn.fit), len(drawn.held_out), len(drawn.measure)) == (0, 0, 1)


def test_too_few_tokens_says_how_many_there_are_and_are_needed() -> None:
    with pytest.raises(CalibrationTooSmall) as caught:
        draw(packed(torch.zeros(5, 16, dtype=torch.long)), samples=8, held_out=1, measure=4, seed=0)
    assert str(caught.value) == (
        "the calibration text has 80 tokens, which fill 5 sequences of 16; 8 x 16 = 128 are needed and 16 more to "
        "evaluate on: give more text, or ask for at most 4 samples"
    )
    assert caught.value.field == "calibration.samples"


def test_hardly_any_text_is_too_little_text() -> None:
    tokenizer = byte_tokenizer()
    short = pack(encode(["abc"], tokenizer, running_text=True), tokenizer, length=16, limit=10)
    with pytest.raises(CalibrationTooSmall, match=r"has 3 tokens, which fill 0 sequences of 16; .*: give more text$"):
        draw(short, samples=2, held_out=1, measure=0, seed=0)


def test_fewer_to_measure_than_asked_for_are_taken() -> None:
    assert (
        len(draw(packed(torch.zeros(10, 4, dtype=torch.long)), samples=8, held_out=1, measure=16, seed=0).measure) == 2
    )
