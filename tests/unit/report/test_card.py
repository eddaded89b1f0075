"""Licence and languages of the original: taken from its card, which a stranger wrote."""

from pathlib import Path

import pytest

from replaceme_core.report.card import BaseCard, read_base_card


def card(directory: Path, header: str) -> None:
    (directory / "README.md").write_text(f"---\n{header}\n---\n# A model\n")


def test_licence_and_languages_are_inherited(tmp_path: Path) -> None:
    card(tmp_path, "license: apache-2.0\nlanguage: [en, de]\ntags: [x]")
    assert read_base_card(tmp_path) == BaseCard(licence="apache-2.0", languages=("en", "de"))
    card(tmp_path, "license: other\nlicense_name: some-terms\nlicense_link: LICENSE\nlanguage: fr")
    expected = BaseCard(licence="other", name="some-terms", link="LICENSE", languages=("fr",))
    assert read_base_card(tmp_path) == expected


def test_terms_without_a_named_licence(tmp_path: Path) -> None:
    for name in ("LICENSE.txt", "NOTICE"):
        (tmp_path / name).write_text("terms")
    found = read_base_card(tmp_path)
    assert (found.licence, found.link, found.terms) == ("other", "LICENSE.txt", ("LICENSE.txt", "NOTICE"))


def test_nothing_is_invented(tmp_path: Path) -> None:
    assert read_base_card(tmp_path) == BaseCard()


@pytest.mark.parametrize(
    "header",
    [
        "license: 'mit\\nmalicious: true'",
        "license: {a: b}",
        "license: <script>alert(1)</script>",
        "language: English, of course",
        "license: &a mit\nlicense_name: *a",
        "license: " + "a" * 40_000,
        'license_name: "two\\nlines"',
        "license_link: javascript:alert(1)",
        "license_link: ../../elsewhere",
    ],
)
def test_values_that_the_hub_does_not_know_are_left_out(tmp_path: Path, header: str) -> None:
    card(tmp_path, header)
    assert read_base_card(tmp_path) == BaseCard()
