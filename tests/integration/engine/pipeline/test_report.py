"""What a run leaves for people: the page with its plots, and the model card. Nothing in them is invented."""

import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Mapping
from html import unescape
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from rich.console import Console
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM

from api.cli.output.report import print_report
from api.main import create_app
from replaceme_core.families.layout import MapStructure
from replaceme_core.ledger.database import Database
from replaceme_core.report import view
from replaceme_core.report.card import PICTURE, BaseCard, write_card
from replaceme_core.report.page import plots_of, policy, render_page
from replaceme_core.report.plots import rendered
from replaceme_core.report.reading import Report
from replaceme_core.request.spec import CompressionRequest
from replaceme_core.runner.messages import Finished
from replaceme_core.wording import printable
from tests.fixtures.api.requests import submit
from tests.fixtures.api.service import settings_in
from tests.fixtures.hostile.texts import TEXTS
from tests.fixtures.jobs.ledger import claim_job, succeed
from tests.fixtures.models.pipeline import request, run
from tests.fixtures.models.recorder import Recorder
from tests.fixtures.models.tiny import BY_NAME, save_tiny
from tests.fixtures.reports.real_run import HUB, finished_run
from tests.fixtures.reports.shown import Rendered, differences, read_page
from tests.fixtures.reports.shown import rendered as read_markdown

Content = dict[str, Any]
REVISION = "a" * 40
DATA_SET = re.compile(r"([\w-]+/)?[\w.-]+", re.ASCII)
"""The Hub refuses a card whose header names a data set otherwise."""
OURS = ("distance", "residual", "window", "anchor", "stream", "None", "nan")
"""Words that only we use, and what a value that is missing would look like."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Recorder, Path]:
    return finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def out(finished: tuple[Finished, Recorder, Path]) -> Path:
    return finished[2]


@pytest.fixture
def report(out: Path) -> Content:
    """For each test its own."""
    found: Content = json.loads((out / "replaceme.json").read_text())
    return found


@pytest.fixture
def html(out: Path) -> str:
    return (out / "report.html").read_text()


def test_the_page_has_every_section_and_the_values_of_the_report(html: str, report: Content) -> None:
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", html) == [
        "In short",
        "Gate",
        "Quality before and after",
        "Size and speed",
        "Answers side by side",
        "Which blocks, and why",
        "Time and memory",
        "Where it comes from",
    ]
    page = read_page(html)
    assert differences(page, report) == []
    assert len(page.shown) > 150
    assert json.loads(page.code["#/spec"]) == report["spec"]
    report["texts"][0]["ratio"] *= 1.2
    report["removed_blocks"] = [1]
    report["candidates"][0]["residual"] += 0.001
    assert len(differences(page, report)) >= 4, "a wrong value would be found"


def test_the_page_needs_no_network_runs_nothing_and_is_for_everybody(html: str) -> None:
    tags = read_page(html).tags
    names = [name for name, _ in tags]
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"}.intersection(names)
    addresses = [value for _, given in tags for name, value in given.items() if name in ("src", "href", "srcset")]
    assert addresses and all(value and value.startswith(("data:image/svg+xml;base64,", "#")) for value in addresses)
    assert not [name for _, given in tags for name in given if name.startswith("on") or name == "style"]
    assert [given["content"] for name, given in tags if "http-equiv" in given] == [policy()]
    assert policy().startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy()
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(given.get("alt") for name, given in tags if name == "img")


def test_every_plot_has_units_and_a_sentence_on_how_to_read_it(report: Content) -> None:
    plots = {plot.name: plot for plot in plots_of(report)}
    assert list(plots) == ["perplexity", "tasks", "influence", "windows", "candidates", "times", "peaks"]
    for plot in plots.values():
        assert all(len(text) > 40 and text.endswith(".") for text in (plot.alt, plot.reading))
        figure = plot.draw()
        labels = [axes.get_xlabel() for axes in figure.axes] + [axes.get_ylabel() for axes in figure.axes]
        assert any("(" in label or "block" in label for label in labels), plot.name
        width, height = plot.pixels
        assert tuple(figure.get_size_inches() * 96) == pytest.approx((width, height), abs=1), "what is kept free for it"
    assert rendered(plot, "svg") == rendered(plot, "svg")


def test_the_metrics_are_the_values_of_the_report(finished: tuple[Finished, Recorder, Path], report: Content) -> None:
    recorder = finished[1]
    for side, one in itertools.product(("before", "after"), view.QUANTITIES):
        if (value := Report(report).at(side, *one.path)) is not None:
            assert recorder.value(f"{side}.{one.name}") == value
    for name, key in (("seconds", "seconds"), ("peak_memory", "peak_bytes")):
        assert recorder.values(name) == [stage[key] for stage in report["stages"]]


def read(out: Path) -> ModelCard:
    """The card, which `ModelCard` refuses if its header or its results are not valid."""
    return ModelCard.load(out / "README.md", ignore_metadata_errors=False)


def words_of_ours(card: ModelCard) -> list[str]:
    """Outside of code, in which words of the interface may stand."""
    text = re.sub(r"```.*?```|`[^`]*`", "", card.text, flags=re.DOTALL)
    return [word for word in OURS if re.search(rf"\b{word}\b", text)]


def test_what_the_hub_and_a_person_read(finished: tuple[Finished, Recorder, Path], report: Content) -> None:
    done, recorder, out = finished
    card = read(out)
    data = card.data
    assert (
        data.to_dict().items()
        >= {
            "license": "other",
            "license_name": "tiny-terms",
            "license_link": "LICENSE",
            "language": ["en", "de"],
            "base_model": "org/tiny",
            "base_model_relation": "finetune",
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
        }.items()
    )
    assert {"depth-pruning", "replaceme", "pruned"} <= set(data.tags)
    assert data.datasets is None, "a file is no data set on the Hub"
    measured = data.eval_results
    results = [(one.dataset_name, one.metric_type, one.metric_value) for one in measured]
    assert results == [(row["name"], "perplexity", round(row["after"], 4)) for row in report["texts"]]
    assert results[0][0] == "file:text.txt"
    assert [one.dataset_type for one in measured if not DATA_SET.fullmatch(one.dataset_type)] == []
    assert (out / "LICENSE").read_text() == "Do as you like."
    for make in (view.both_models, view.texts, view.tasks, view.gate):
        table = make(Report(report))
        assert table is not None
        assert view.markdown_table(table) in card.text
    cuts = view.candidates(Report(report))
    assert cuts is not None
    fewer = 1 - report["after"]["parameters"] / report["before"]["parameters"]
    first, last = done.removed_blocks[0], done.removed_blocks[-1]
    for expected in (
        "# tiny, 5 of 8 blocks",
        f"[org/tiny]({HUB}/org/tiny/tree/{REVISION}) with 5 of its 8 blocks (layers).",
        f"It has {fewer:.0%} fewer parameters".replace("%", " %"),
        f"its perplexity is {report['texts'][0]['ratio']:.3f} times that of the original",
        f"Blocks {first}-{last} of the original (counted from 0) were removed. A linear map",
        view.markdown_table(cuts.only("blocks", "held_out_loss", most=2)),
        "(seed 0) of the file text.txt, and 4 sequences with repeated passages of the others.",
        "AutoModelForCausalLM.from_pretrained(name",
        "replaceme reproduce path/to/this/directory",
        "`tiny-terms`. Its files are here too: `LICENSE`.",
        f"]({PICTURE})",
    ):
        assert expected in card.text
    assert "\n- Removed blocks are knowledge lost" in card.text and "\n- It has the biases" in card.text
    assert "compares the tensors. The same versions on the same hardware give the same bytes." in card.text
    assert "fluent text. Nothing was trained afterwards;" in card.text
    assert words_of_ours(card) == []
    assert (out / PICTURE).read_bytes().startswith(b"\x89PNG")
    (text,) = re.findall(r"```json\n(.*?)```", card.text, flags=re.DOTALL)
    again = CompressionRequest.model_validate(json.loads(text)).to_spec()
    assert recorder.spec is not None
    assert again.model_dump(exclude={"output"}) == recorder.spec.model_dump(exclude={"output"})


def test_of_a_directory_nothing_is_invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No page on the Hub, no revision, no picture without matplotlib, and no name of a temporary directory."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    template = "{% for one in messages %}{{ one.content }}{% endfor %}"
    source = save_tiny(tmp_path / "source", chat_template=template)
    _, _, out = run(request(source, model={"repo_id": "local/tiny"}, evaluation={"enabled": False}))
    card = read(out)
    data = card.data.to_dict()
    assert not data.keys() & {"license", "language", "base_model", "base_model_relation", "datasets", "model-index"}
    for expected in (
        "`tiny` with 4 of its 6 blocks (layers).",
        "`tiny` states no licence",
        "--model MODEL_DIR",
        "Its quality was not measured.",
        "apply_chat_template(",
        "llm.chat(",
    ):
        assert expected in card.text
    assert not re.search(rf"huggingface\.co/(local|org)|None|partial|local/|{PICTURE}", card.text)
    assert not (out / PICTURE).exists()
    assert words_of_ours(card) == []


def test_what_a_warning_is_about_is_in_report_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_tiny(tmp_path / "pattern" / "source", variant=BY_NAME["gemma2"])
    done, _, out = run(request(source, drop=[2], evaluation={"enabled": False}))
    assert done.report["irregular"] == ["layer_types"]
    text = (out / "README.md").read_text()
    assert "> **Warning:** the kinds of its blocks (layer_types in config.json) follow no fixed step" in text
    assert "any software that runs the original" not in text

    clock = itertools.count(step=10)
    monkeypatch.setattr(
        "replaceme_core.engine.methods.auto.time", SimpleNamespace(monotonic=lambda: float(next(clock)))
    )
    method = {"name": "auto", "time_budget_seconds": 15.0}
    source = save_tiny(tmp_path / "budget" / "source")
    done, _, out = run(request(source, method=method, evaluation={"enabled": False}))
    (warning,) = done.report["warnings"]  # type: ignore[misc]
    assert warning["code"] == "time_budget"
    text = (out / "README.md").read_text()
    assert f"> **Warning:** {warning['message']}." in text
    assert "the same bytes" not in text, "at another speed it may choose otherwise"


def test_only_what_keeps_the_pattern_is_removed(tmp_path: Path) -> None:
    """Of one block, only the last may go."""
    source = save_tiny(tmp_path / "source", variant=BY_NAME["gemma2"])
    compute = {"threads": 1, "dtype": "float32", "pattern_safe": True}
    done, recorder, out = run(request(source, ratio=0.17, compute=compute, evaluation={"enabled": False}))
    assert done.removed_blocks == [5]
    assert [row["start"] for row in done.report["candidates"]] == [5]  # type: ignore[attr-defined]
    assert done.report["irregular"] == []
    assert recorder.spec is not None
    assert recorder.spec.method.name == "least_squares"
    assert recorder.spec.compute.pattern_safe, "else it would be made again without"
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 5


def card_of(content: Mapping[str, object], base: BaseCard, place: Path) -> tuple[ModelCard, Rendered]:
    place.mkdir()
    write_card(place, content, base=base, is_chat=False, structure=MapStructure.FULL)
    card = read(place)
    return card, read_markdown(card.text)


def test_a_result_in_a_directory_that_acts_as_the_hub_is_loaded_by_its_path(report: Content, tmp_path: Path) -> None:
    """Its name there, such as `local/small`, is no name on the Hub; the original is shown as it was asked for."""
    report["hub"] = ""
    report["spec"]["output"]["repo_id"] = "local/small"
    card, _ = card_of(report, BaseCard(), tmp_path / "out")
    assert "`org/tiny` with 5 of its 8 blocks (layers)." in card.text
    assert 'name = "path/to/this/directory"' in card.text
    assert "local/small" not in card.text


Row = tuple[str, dict[str, str]]
"""The heading of a row, and its other cells by the headings of their columns."""


def rows_of_tables(tables: Iterable[list[list[str]]]) -> list[Row]:
    """Of tables as lists of rows, the first of which has the headings."""
    return [(row[0], dict(zip(head[1:], row[1:], strict=False))) for head, *rows in tables for row in rows if row]


def in_html(html: str) -> list[Row]:
    def words(text: str) -> str:
        return " ".join(unescape(re.sub(r"<[^>]+>", "", text)).split())

    tables = re.findall(r"<table.*?</table>", html, flags=re.DOTALL)
    rows = [re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL) for table in tables]
    cell = re.compile(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", flags=re.DOTALL)
    return rows_of_tables([[words(one) for one in cell.findall(row)] for row in table] for table in rows)


def in_card(markdown: str) -> list[Row]:
    tables: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and tables and token.level == 4 + (token.map is None):
            tables[-1][-1].append("".join(one.content for one in token.children or ()))
    return rows_of_tables(tables)


def in_terminal(report: Content) -> list[list[str]]:
    """The cells of each row in a terminal that is wide enough."""
    written = io.StringIO()
    print_report(Console(file=written, width=300), Report(report))
    lines = written.getvalue().splitlines()
    rows = [line for line, below in zip(lines, [*lines[1:], ""], strict=True) if "──" not in line + below]
    return [re.split(r"\s{2,}", line.strip()) for line in rows]


def made_up(report: Content) -> Content:
    """The same with other figures and other verdicts."""
    found: Content = json.loads(json.dumps(report))
    for text in found["texts"]:
        text.update(after=123.456, ratio=12.3456, ratio_low=11.1, ratio_high=13.9)
    apart = {
        name: {**change, "told_apart": not change["told_apart"]} for name, change in found["speed_changes"].items()
    }
    criteria = [{**one, "passed": not one["passed"]} for one in found["gate"]["criteria"]]
    return {**found, "speed_changes": apart, "gate": {**found["gate"], "criteria": criteria}}


def test_card_page_terminal_and_dashboard_agree(report: Content, sqlite_template: Path, tmp_path: Path) -> None:
    """In every name, digit and verdict that two of them show; the page of the report shows all."""
    settings = settings_in(tmp_path, sqlite_template)
    database, verdicts = Database(settings.resolved_database_url), dict[str, bool]()
    with TestClient(create_app(settings)) as client:
        for number, content in enumerate((report, made_up(report))):
            job = submit(client)
            with database.session() as session:
                succeed(session, claim_job(session, job), report=content)
            page = in_html(render_page(content))
            card_of(content, BaseCard(), tmp_path / f"card-{number}")
            card = (tmp_path / f"card-{number}" / "README.md").read_text()
            shown = {"dashboard": in_html(client.get(f"/ui/jobs/{job}").text), "card": in_card(card)}
            for place, rows in shown.items():
                compared = [
                    [(name, mine[name], theirs[name]) for name in mine if name in theirs]
                    for heading, mine in rows
                    for other, theirs in page
                    if heading == other and mine.keys() & theirs.keys() and mine.keys() <= theirs.keys()
                ]
                assert len(compared) > 20, place
                assert [one for row in compared for one in row if one[1] != one[2]] == [], place
            lines = in_terminal(content)
            known = [(line, [cells for name, cells in page if name == line[0]]) for line in lines if len(line) > 1]
            for line, candidates in known:
                if candidates:
                    assert any(set(line[1:]) <= set(cells.values()) for cells in candidates), (line, candidates)
            assert sum(bool(candidates) for _, candidates in known) > 15
            everywhere = [str(page), str(lines), *map(str, shown.values())]
            for verdict in ("passed", "missed", "not significant"):
                found = {verdict in text for text in everywhere}
                assert len(found) == 1, verdict
                verdicts[verdict] = verdicts.get(verdict, False) or found == {True}
    assert verdicts == dict.fromkeys(verdicts, True), "each was seen once"
    database.close()


def full_of(text: str, report: Content) -> tuple[Content, BaseCard]:
    """The same report, with `text` wherever a stranger may have put it, also where a check would refuse it."""
    content: Content = json.loads(json.dumps(report))
    name = "".join(" " if one < " " or one in "/\x7f" else one for one in text.encode(errors="replace").decode())
    spec, score = content["spec"], {"accuracy": 0.5, "low": 0.4, "high": 0.6, "metrics": {}}
    sources = [
        {"dataset": f"file:a{name}.txt", "share": 0.5},
        {"dataset": "org/data", "share": 0.5, "config": name, "split": name, "column": name},
    ]
    sizes = {key: spec["calibration"][key] for key in ("samples", "max_length", "seed")}
    spec["calibration"] = {**sizes, "sources": sources}
    spec["model"]["repo_id"] = f"org/{name}"
    content["texts"] = [
        {**row, "name": each} for row, each in zip(content["texts"], (text, f"file:{text}"), strict=False)
    ]
    for row in content["answers"]:
        row |= {"prompt": text, "before": text, "after": text}
    content["tasks"] = [{"name": text, "before": score, "after": score, "samples": 9, "few_shot": 0, "chance": 0.25}]
    losses = {"start": 1, "end": 2, "held_out_loss": 3.0}
    content["candidates"] = [{**losses, "chosen": True, "source_losses": {text: 3.0, "b": 1.0}}, losses]
    content["disagreements"] = [{"source": text, "start": 1, "end": 2, "loss": 2.0, "chosen_loss": 3.0}]
    content["warnings"] = [{"code": "x", "message": text}]
    content["device"]["hardware"] = content["code"]["version"] = content["after"]["dtype"] = text
    content["irregular"], content["versions"] = [text], {text: text}
    content["gate"]["criteria"][0]["name"] = text
    return content, BaseCard(licence="other", name=text, link=text, languages=(text,), terms=(text,))


def test_texts_of_one_data_set_are_those_of_their_configs_in_the_header(report: Content, tmp_path: Path) -> None:
    content: Content = json.loads(json.dumps(report))
    sizes = {key: content["spec"]["calibration"][key] for key in ("samples", "max_length", "seed")}
    sources = [{"dataset": "org/data", "config": config} for config in ("en", "de")]
    content["spec"]["calibration"] = {**sizes, "sources": sources}
    row = content["texts"][0]
    content["texts"] = [{**row, "name": f"org/data (config {config})"} for config in ("en", "de")]
    card, _ = card_of(content, BaseCard(), tmp_path / "out")
    found = [(one.dataset_type, one.dataset_config) for one in card.data.eval_results or []]
    assert found == [("org/data", "en"), ("org/data", "de")]


def test_a_training_with_a_limit_of_time_promises_no_bytes(report: Content, tmp_path: Path) -> None:
    content: Content = json.loads(json.dumps(report))
    for seconds in (None, 60.0):
        content["spec"]["heal"] = {"tokens": 4096, "weights": "all", "time_budget_seconds": seconds}
        card, _ = card_of(content, BaseCard(), tmp_path / str(seconds))
        assert ("the same bytes" in card.text) == (seconds is None)


def test_each_text_in_a_file_is_named_where_it_is_made_again(report: Content, tmp_path: Path) -> None:
    content: Content = json.loads(json.dumps(report))
    sizes = {**{key: content["spec"]["calibration"][key] for key in ("max_length", "seed")}, "samples": 24}
    sources = [{"dataset": name} for name in ("file:a.txt", "org/data", "file:b.txt")]
    for number, (given, options) in enumerate(((sources, " --text FILE --text FILE"), (sources[1:2], ""))):
        content["spec"]["calibration"] = {**sizes, "sources": given}
        card, _ = card_of(content, BaseCard(), tmp_path / str(number))
        assert f"replaceme reproduce path/to/this/directory{options}\n" in card.text


def test_text_of_strangers_is_text_on_page_and_card(
    report: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tags, the blocks, the links and the fields are those with plain words in these places."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # it takes most of the time, and draws no text of strangers

    def shown(text: str, name: str) -> tuple[list[tuple[str, ...]], ModelCard, Rendered]:
        content, base = full_of(text, report)
        html = render_page(content)
        assert ("matplotlib was not installed" in html, "<img" in html) == (True, False)
        html.encode()
        return [(tag, *given) for tag, given in read_page(html).tags], *card_of(content, base, tmp_path / name)

    plain_tags, plain_card, plain = shown("word", "plain")
    for number, text in enumerate(TEXTS.values()):
        tags, card, page = shown(text, str(number))
        assert tags == plain_tags
        assert page.blocks == plain.blocks
        assert (page.html, page.bare) == ([], [])
        assert [one for one in page.linked if "evil" in one and not one.startswith(f"{HUB}/org/")] == []
        assert len(page.linked) == len(plain.linked)
        assert card.data.to_dict().keys() == plain_card.data.to_dict().keys()
        written = (tmp_path / str(number) / "README.md").read_text()
        assert printable(written, lines=True) == written
        assert printable(" ".join(text.split())) in page.text
