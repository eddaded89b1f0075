"""What pages show of reports that a run does not write every day, and what cards take from the original's card."""

import re
from pathlib import Path

import pytest

from replaceme_core.report.card import BaseCard, read_base_card
from replaceme_core.report.page import plots_of, render_page
from tests.fixtures.reports.shown import SMALL, differences, read_page

BROKEN: tuple[dict[str, object], ...] = (
    {},
    {"spec": None, "texts": [1, None], "tasks": {}, "candidates": "no", "stages": [{}], "memory": [{"seconds": 1}]},
    {"layers": [{"block": 0}], "windows": {"distances": [[], "x"]}, "trials": [{"blocks": "many"}], "gate": 5},
    {"texts": [{"name": 1, "ratio": float("inf"), "before": True, "after": 10**400, "ratio_low": "x"}]},
    {"removed_blocks": [{}], "kept_blocks": "abc", "warnings": ["x"], "versions": [], "model": {"a": {"b": 1}}},
    {"answers": [{"prompt": "\ud800", "before": None, "after": ["x"]}], "created_at": 5, "plan": {"stages": [7]}},
)
TRIALS = [
    {"blocks": 4, "measured": {}, "passed": False, "seconds": 3.0, "problem": "the perplexity is not finite"},
    {"blocks": 1, "measured": {"perplexity_ratio": 1.1, "accuracy_kept": 0.9}, "passed": True, "seconds": 75.0},
    {"blocks": 2, "measured": {"perplexity_ratio": 1.1, "accuracy_kept": 0.95}, "passed": True, "seconds": 4.5},
    {"blocks": 3, "measured": {"perplexity_ratio": 2.7}, "passed": False, "seconds": 5.0},
]


def test_a_report_of_another_version_or_a_broken_one_is_shown_as_far_as_it_goes() -> None:
    for content in BROKEN:
        page = render_page(content)
        assert re.findall(r"<h2[^>]*>(.*?)</h2>", page)[0] == "In short"
        assert "None" not in re.sub(r"(?s)<pre.*?</pre>", "", page) and "nan" not in page
        page.encode()


def test_a_search_is_a_table_and_a_plot() -> None:
    searched = {**SMALL, "gate": {"passed": True, "criteria": [], "trials": TRIALS}}
    page = render_page(searched)
    assert "trials" in [plot.name for plot in plots_of(searched)]
    assert differences(read_page(page), searched) == []
    rows = re.findall(r'<th [^>]*scope="row"><data[^>]*/trials/\d/blocks">(\d)</data>([^<]*)</th>', page)
    assert rows == [("1", ""), ("2", " * (taken)"), ("3", ""), ("4", "")], "none that misses the gate has a star"
    assert "the perplexity is not finite" in page
    assert "Rejected:" not in page


def test_a_rejected_result_says_so_first() -> None:
    page = render_page({**SMALL, "gate": {"passed": False, "criteria": [], "trials": []}})
    assert page.index("Rejected:") < page.index("<nav")


def test_one_block_is_no_plural() -> None:
    page = re.sub("<[^>]+>", "", render_page({**SMALL, "removed_blocks": [2], "kept_blocks": [0]}))
    assert "1 block: 2 (counted from zero)" in page and "1 blocks" not in page


NOTHING = BaseCard()
OTHER = BaseCard(licence="other", name="some-terms", link="LICENSE", languages=("fr",))
SEVERAL = BaseCard(licence="other", name="mit-and-apache-2.0")


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("license: apache-2.0\nlanguage: [en, de]\ntags: [x]", BaseCard(licence="apache-2.0", languages=("en", "de"))),
        ("license: other\nlicense_name: some-terms\nlicense_link: LICENSE\nlanguage: fr", OTHER),
        ("license: 'mit\\nmalicious: true'", NOTHING),
        ("license: {a: b}", NOTHING),
        ("license: [apache-2.0]", BaseCard(licence="apache-2.0")),
        ("license:\n- mit\n- apache-2.0", SEVERAL),
        ("license: [mit, <b>]", NOTHING),
        ("license: []", NOTHING),
        ("license: <script>alert(1)</script>", NOTHING),
        ("language: English, of course", NOTHING),
        ("license: &a mit\nlicense_name: *a", NOTHING),
        ("license: " + "a" * 40_000, NOTHING),
        ('license_name: "two\\nlines"', NOTHING),
        ("license_link: javascript:alert(1)", NOTHING),
        ("license_link: ../../elsewhere", NOTHING),
    ],
)
def test_only_values_that_the_hub_knows_are_inherited(tmp_path: Path, header: str, taken: BaseCard) -> None:
    assert read_base_card(tmp_path) == NOTHING
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n# A model\n")
    assert read_base_card(tmp_path) == taken


def test_terms_without_a_named_licence(tmp_path: Path) -> None:
    for name in ("LICENSE.txt", "NOTICE"):
        (tmp_path / name).write_text("terms")
    found = read_base_card(tmp_path)
    assert (found.licence, found.link, found.terms) == ("other", "LICENSE.txt", ("LICENSE.txt", "NOTICE"))
