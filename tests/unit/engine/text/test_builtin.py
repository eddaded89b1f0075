"""The built-in texts: that they are clean, and how they are read."""

import re
from importlib import resources

import pytest

from replaceme_core.engine.text.documents import PARTS, PYDOC, Document, builtin_documents, read_text_file
from replaceme_core.errors import InvalidInput
from replaceme_core.request.calibration import GENERAL, PARTS_OF_GENERAL
from replaceme_core.request.fields import BUILTIN_TEXTS

FILES = ("code", "dialogue", "essays", "instructions", "stories")
CONVERSATIONS = ("dialogue", "instructions")
ABOUT_MODELS = re.compile(
    r"\b(AI|artificial intelligence|language models?|LLMs?|chat ?bots?|neural|machine learning|compress\w*"
    r"|prun(?:e|ed|ing)|as an assistant|ChatGPT|transformers?|the capital of)\b"
)


def raw(part: str) -> str:
    texts = resources.files("replaceme_core.engine.text") / "texts"
    return (texts / f"{part}.txt").read_bytes().decode("utf-8")


def plain(document: Document) -> str:
    return document if isinstance(document, str) else "\n".join(turn["content"] for turn in document)


def test_the_files_are_those_that_the_names_stand_for() -> None:
    texts = resources.files("replaceme_core.engine.text") / "texts"
    assert sorted(file.name for file in texts.iterdir()) == [f"{part}.txt" for part in FILES]
    assert sorted({part for parts in PARTS.values() for part in parts}) == list(FILES)
    assert {*PARTS, PYDOC} == set(BUILTIN_TEXTS)
    assert set(PARTS) == {GENERAL, *PARTS_OF_GENERAL}


@pytest.mark.parametrize("part", FILES)
def test_a_text_is_clean(part: str) -> None:
    text = raw(part)
    assert 38_000 <= len(text) <= 44_000
    assert text.endswith("\n")
    assert not re.search(r"[\r\ufeff\ufffd]|[\x00-\x08\x0b-\x1f\x7f]|[‘’“”]", text)
    assert "%%%%" not in text.replace("\n%%%%\n", "")
    assert ABOUT_MODELS.findall(text) == []
    documents = [plain(document) for document in read_text_file(part)]
    assert len(documents) >= 12
    assert all(document == document.strip("\n") and len(document) > 300 for document in documents)


def test_no_document_or_opening_comes_twice() -> None:
    documents = [plain(document) for part in FILES for document in read_text_file(part)]
    assert len(set(documents)) == len(documents)
    openings = [document[:40] for document in documents if not document.startswith("#!")]
    assert len(set(openings)) == len(openings)
    long_lines = [line for document in documents for line in document.splitlines() if len(line) > 100]
    assert len(set(long_lines)) == len(long_lines)


@pytest.mark.parametrize("part", CONVERSATIONS)
def test_a_conversation_begins_with_the_user_and_ends_with_the_answer(part: str) -> None:
    assert not re.search(r"^### (?!user\n|assistant\n)", raw(part), re.MULTILINE)
    for conversation in read_text_file(part):
        assert not isinstance(conversation, str)
        assert [turn["role"] for turn in conversation] == ["user", "assistant"] * (len(conversation) // 2)
        assert conversation
        for turn in conversation:
            assert turn["content"] == turn["content"].strip()
            assert turn["content"]


@pytest.mark.parametrize("part", sorted(set(FILES) - set(CONVERSATIONS)))
def test_other_documents_are_plain_text(part: str) -> None:
    assert all(isinstance(document, str) for document in read_text_file(part))


@pytest.mark.parametrize("name", BUILTIN_TEXTS)
def test_a_text_is_read_whole_and_always_in_the_same_order(name: str) -> None:
    once, twice = (list(builtin_documents(name)) for _ in range(2))
    assert once == twice
    if name == PYDOC:
        assert sum(len(plain(document)) for document in once) > 400_000
    else:
        assert sorted(map(plain, once)) == sorted(plain(each) for part in PARTS[name] for each in read_text_file(part))


@pytest.mark.parametrize("name", ["builtin:general", "builtin:prose"])
def test_each_part_of_a_mixed_text_has_documents_of_every_kind(name: str) -> None:
    kind_of = {plain(document): part for part in PARTS[name] for document in read_text_file(part)}
    kinds = [kind_of[plain(document)] for document in builtin_documents(name)]
    tenth = len(kinds) // 10
    for start in range(0, len(kinds) - tenth, tenth):
        assert set(kinds[start : start + tenth + 2]) == set(PARTS[name]), start


def test_another_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InvalidInput, match=r"no built-in text 'builtin:other'; available: .*builtin:code"):
        list(builtin_documents("builtin:other"))
