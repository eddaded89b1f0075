"""What a real run leaves: the page with its sections and values, text of strangers in it, and the card and metrics."""

import base64
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from replaceme_core.report import view
from replaceme_core.report.card import BaseCard, read_base_card
from replaceme_core.report.page import plots_of, policy, render_page, write_plots
from replaceme_core.report.plots import FORMATS
from replaceme_core.report.reading import Report
from tests.fixtures.evaluation.local_tasks import CHOICE
from tests.fixtures.hostile.texts import TEXTS
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.reports.real_run import finished_run
from tests.fixtures.reports.shown import differences, read_page

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
TRIALS = [
    {"blocks": 4, "measured": {}, "passed": False, "seconds": 3.0, "problem": "the perplexity is not finite"},
    {"blocks": 1, "measured": {"perplexity_ratio": 1.1, "accuracy_kept": 0.9}, "passed": True, "seconds": 75.0},
    {"blocks": 2, "measured": {"perplexity_ratio": 1.1, "accuracy_kept": 0.95}, "passed": True, "seconds": 4.5},
    {"blocks": 3, "measured": {"perplexity_ratio": 2.7}, "passed": False, "seconds": 5.0},
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recorder, Path]:
    """The metrics of a run, and the directory of its result."""
    return finished_run(tmp_path_factory.mktemp("run"))[1:]


@pytest.fixture(scope="module")
def result(recorded: tuple[Recorder, Path]) -> Path:
    return recorded[1]


@pytest.fixture(scope="module")
def report(result: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result / "replaceme.json").read_text())
    return found


@pytest.fixture(scope="module")
def html(result: Path) -> str:
    return (result / "report.html").read_text()


def headings(html: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", html)


def test_every_section_has_something(html: str) -> None:
    assert headings(html) == [
        "In short",
        "Gate",
        "Quality before and after",
        "Size and speed",
        "Answers side by side",
        "Which blocks, and why",
        "Time and memory",
        "Where it comes from",
    ]
    for shown in ("builtin:general", CHOICE, "The result misses its gate.", "✗ missed", "Kullback-Leibler", "SHA-256"):
        assert shown in html


def test_every_plot_is_there_with_units_and_a_sentence_on_how_to_read_it(report: dict[str, Any]) -> None:
    plots = {plot.name: plot for plot in plots_of(report)}
    assert list(plots) == ["perplexity", "tasks", "influence", "windows", "candidates", "times", "peaks", "memory"]
    for plot in plots.values():
        assert len(plot.alt) > 40 and plot.alt.endswith(".")
        assert len(plot.reading) > 40 and plot.reading.endswith(".")
        figure = plot.draw()
        labels = [axes.get_xlabel() for axes in figure.axes] + [axes.get_ylabel() for axes in figure.axes]
        assert any("(" in label or "block" in label for label in labels), plot.name


def test_every_value_is_the_one_in_the_report(html: str, report: dict[str, Any]) -> None:
    page = read_page(html)
    assert differences(page, report) == []
    assert len(page.shown) > 150
    assert json.loads(page.code["#/spec"]) == report["spec"]


def test_a_wrong_value_would_be_found(html: str, report: dict[str, Any]) -> None:
    other = json.loads(json.dumps(report))
    other["texts"][0]["ratio"] *= 1.2
    other["removed_blocks"] = [1]
    other["candidates"][0]["residual"] += 0.001
    assert len(differences(read_page(html), other)) >= 4
    assert differences(read_page(re.sub(r"<data[^>]*>(.*?)</data>", r"\1", html)), report)


def test_it_needs_no_network_and_runs_nothing(html: str) -> None:
    tags = read_page(html).tags
    names = {name for name, _ in tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    addresses = [value for _, given in tags for name, value in given.items() if name in ("src", "href", "srcset")]
    assert addresses and all(value and value.startswith(("data:image/svg+xml;base64,", "#")) for value in addresses)
    assert not [name for _, given in tags for name in given if name.startswith("on") or name == "style"]
    assert [given["content"] for name, given in tags if "http-equiv" in given] == [policy()]
    assert policy().startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy()


def test_it_is_for_everybody(html: str) -> None:
    tags = read_page(html).tags
    levels = [int(name[1]) for name, _ in tags if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert next(given for name, given in tags if name == "html")["lang"] == "en"
    assert all(given.get("alt") for name, given in tags if name == "img")
    assert all(given.get("scope") in ("col", "row") for name, given in tags if name == "th")
    tables = [name for name, _ in tags if name in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)


def test_text_of_strangers_is_text(report: dict[str, Any]) -> None:
    hostile = json.loads(json.dumps(report))
    hostile["spec"]["model"]["repo_id"] = f"org/{HOSTILE}"
    hostile["answers"][0] |= {"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}
    hostile["texts"][0]["name"] = HOSTILE
    hostile["tasks"][0]["name"] = "$\\frac{1}{0$ \u6587"
    hostile["warnings"] = [{"code": "x", "message": HOSTILE}]
    hostile["versions"] = {HOSTILE: HOSTILE}
    hostile["candidates"][0]["source_losses"] = {HOSTILE: 1.0, "b": 2.0}
    page = render_page(hostile)
    names = {name for name, _ in read_page(page).tags}
    assert "script" not in names
    assert not [given for name, given in read_page(page).tags if name == "img" and given.get("src") == "x"]
    assert page.count("&lt;script&gt;") >= 7
    assert differences(read_page(page), hostile) == []
    pictures = [base64.b64decode(one).decode() for one in re.findall(r"svg\+xml;base64,([^\"]+)", page)]
    assert len(pictures) == 8 and not [one for one in pictures if "<script" in one]


def test_the_tags_are_those_of_a_page_with_plain_words(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # plots are pictures of their own, see above

    def tags(text: str) -> list[tuple[str, ...]]:
        full = json.loads(json.dumps(report))
        full["spec"]["model"]["repo_id"] = f"org/{text}"
        full["answers"][0] |= {"prompt": text, "before": text, "after": text}
        full["texts"][0]["name"] = full["tasks"][0]["name"] = full["gate"]["criteria"][0]["name"] = text
        full["warnings"] = [{"code": "x", "message": text}]
        full["versions"] = {text: text}
        full["candidates"][0]["source_losses"] = {text: 1.0, "b": 2.0}
        page = render_page(full)
        page.encode()
        return [(tag, *given) for tag, given in read_page(page).tags]

    plain = tags("word")
    for name, text in TEXTS.items():
        assert tags(text) == plain, name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spec": None, "texts": [1, None], "tasks": {}, "candidates": "no", "stages": [{}], "memory": [{"seconds": 1}]},
        {"layers": [{"block": 0}], "windows": {"distances": [[], "x"]}, "trials": [{"blocks": "many"}], "gate": 5},
        {"texts": [{"name": 1, "ratio": float("inf"), "before": True, "after": 10**400, "ratio_low": "x"}]},
        {"removed_blocks": [{}], "kept_blocks": "abc", "warnings": ["x"], "versions": [], "model": {"a": {"b": 1}}},
        {"answers": [{"prompt": "\ud800", "before": None, "after": ["x"]}], "created_at": 5, "plan": {"stages": [7]}},
    ],
)
def test_a_report_of_another_version_or_a_broken_one_is_shown_as_far_as_it_goes(changes: dict[str, object]) -> None:
    page = render_page(changes)
    assert headings(page)[0] == "In short"
    assert "None" not in re.sub(r"(?s)<pre.*?</pre>", "", page) and "nan" not in page
    page.encode()


def test_a_search_is_a_table_and_a_plot(report: dict[str, Any]) -> None:
    searched = {**report, "removed_blocks": [2, 3], "gate": {"passed": True, "criteria": [], "trials": TRIALS}}
    page = render_page(searched)
    assert "Search for the deepest cut" in headings(page)
    assert "trials" in [plot.name for plot in plots_of(searched)]
    assert differences(read_page(page), searched) == []
    rows = re.findall(r'<th scope="row"><data[^>]*/trials/\d/blocks">(\d)</data>([^<]*)</th>', page)
    assert rows == [("1", ""), ("2", " * (taken)"), ("3", " *"), ("4", "")]
    assert "the perplexity is not finite" in page


def test_plots_as_files(report: dict[str, Any], tmp_path: Path) -> None:
    written = write_plots(tmp_path, report, kinds=FORMATS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    assert {path.suffix for path in written} == {".svg", ".png"}
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
    again = tmp_path / "again"
    again.mkdir()
    write_plots(again, report, kinds=("svg",))
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in written if path.suffix == ".svg")


def test_without_matplotlib_the_page_says_so(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = render_page(report)
    assert "matplotlib was not installed" in page
    assert "<img" not in page
    assert differences(read_page(page), report) == []


def test_the_card_has_the_tables_of_the_view_and_its_figures(result: Path, report: dict[str, Any]) -> None:
    text, found = ModelCard.load(result / "README.md").text, Report(report)
    for make in (view.both_models, view.texts, view.tasks, view.gate):
        table = make(found)
        assert table is not None
        assert view.markdown_table(table) in text
    cuts = view.candidates(found)
    assert cuts is not None
    assert view.markdown_table(cuts.only("blocks", "held_out_loss", most=2)) in text
    fewer = 1 - report["after"]["parameters"] / report["before"]["parameters"]
    assert f"It has {fewer:.0%} fewer parameters".replace("%", " %") in text
    assert f"its perplexity is {report['texts'][0]['ratio']:.3f} times that of the original" in text


def test_the_metrics_are_the_values_of_the_report(recorded: tuple[Recorder, Path], report: dict[str, Any]) -> None:
    recorder = recorded[0]
    for side in ("before", "after"):
        for name in ("perplexity", "parameters", "bytes", "blocks", "word_perplexity", "byte_perplexity"):
            assert recorder.value(f"{side}.{name}") == report[side][name]
        for kind in ("prefill", "decode"):
            assert recorder.value(f"{side}.{kind}_tokens_per_second") == report[side]["speed"][kind]["median"]
        assert recorder.value(f"{side}.peak_bytes") == report[side]["speed"]["peak_bytes"]
    for name, key in (("seconds", "seconds"), ("peak_memory", "peak_bytes")):
        assert recorder.values(name) == [stage[key] for stage in report["stages"]]


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
