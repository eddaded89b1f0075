"""The model card, for somebody who finds the model and has never read of this project: one template over a report.

Strangers wrote much of what it shows: names, the licence, answers of models, warnings that quote them. So whatever the
template prints is made text for Markdown, unless it is `Markup`: numbers, code and sentences of ours. YAML quotes what
the header holds, and of the card of the source model only values of the kind that the Hub knows are taken.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Template
from markupsafe import Markup

from replaceme_core.errors import InvalidInput
from replaceme_core.families.layout import IMAGE_CLASSIFIER, IMAGE_MODEL, LANGUAGE_MODEL, MapStructure
from replaceme_core.hub.data_files import Value, header_of, read_card
from replaceme_core.hub.model_files import CARD, is_terms
from replaceme_core.report import view
from replaceme_core.report.figures import LOSS, PERPLEXITY, RATIO, WHOLE, percent
from replaceme_core.report.page import templates_in
from replaceme_core.report.plots import can_draw, influence, rendered
from replaceme_core.report.reading import Report, Shown
from replaceme_core.report.view import Table, markdown_table
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.defaults import HEAL_LIKELIEST
from replaceme_core.request.fields import BUILTIN_PREFIX
from replaceme_core.request.method import TRAITS, Method
from replaceme_core.request.removal import block_ranges, ratio_of
from replaceme_core.request.resolve import OF_TEXT, ResolvedSpec
from replaceme_core.request.spec import NOT_DECIDING
from replaceme_core.wording import counted, markdown, markdown_code, printable

PICTURE: Final = "blocks.png"
ANSWER_CHARACTERS: Final = 240
MOST_ROWS: Final = 8
TAGS = ("depth-pruning", "pruned", "replaceme", "compression")
RELATION = "finetune"
"""The Hub knows adapter, finetune, merge and quantized; of these only this one means other weights of one kind."""
OTHER = "other"
"""The Hub's word for a licence that is none of its list."""
_NOT_OF_A_DATA_SET = re.compile(r"[^\w.-]+", re.ASCII)
"""What the name of a data set in the header of a card cannot have, by the rules of the Hub."""
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_LINK = re.compile(r"https?://[^\s<>\"']{1,300}|\w[\w.-]{0,99}", re.ASCII)
_LINE = re.compile(r".{1,200}")
_SHAPE_AND_PLACE = {
    MapStructure.FULL: {"shape": "linear", "place": "output projection"},
    MapStructure.DIAGONAL: {"shape": "diagonal", "place": "last norm"},
}

_TASKS = {
    LANGUAGE_MODEL: "text-generation",
    IMAGE_MODEL: "image-feature-extraction",
    IMAGE_CLASSIFIER: "image-classification",
}
"""The Hub's words for what a model of each class does."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BaseCard:
    """`licence` and `languages` are words of the Hub; `name` and `link` belong to the licence `other`.

    `terms` are the files of licence, notice and use policy that lie beside the weights.
    """

    licence: str | None = None
    name: str | None = None
    link: str | None = None
    languages: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()


def read_base_card(directory: Path) -> BaseCard:
    """Of the model in `directory`. What is missing or of another kind is left out."""
    terms = tuple(sorted(path.name for path in directory.iterdir() if is_terms(path.name) and path.is_file()))
    try:
        header = header_of(read_card(directory / CARD)) if (directory / CARD).is_file() else {}
    except InvalidInput:  # a header that is not read
        header = {}
    given = header.get("license")
    licences = [_matching(one, _LICENSE) for one in (given if isinstance(given, list) else [given])]
    licence = licences[0] if len(licences) == 1 else None
    name, link = _matching(header.get("license_name"), _LINE), _matching(header.get("license_link"), _LINK)
    if len(licences) > 1 and all(licences):
        licence, name = OTHER, "-and-".join(map(str, licences))
    if licence is None and terms:
        licence, name, link = OTHER, "terms-of-the-original-model", terms[0]
    return BaseCard(licence=licence, name=name, link=link, languages=_languages(header.get("language")), terms=terms)


def _matching(value: Value | None, pattern: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) and printable(value) == value else None


def _languages(value: Value | None) -> tuple[str, ...]:
    named = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(dict.fromkeys(one for one in named if isinstance(one, str) and _LANGUAGE.fullmatch(one)))


def write_card(
    directory: Path,
    content: Mapping[str, object],
    *,
    base: BaseCard,
    is_chat: bool,
    structure: MapStructure,
    has_text: bool = False,
) -> None:
    """Write `README.md` into `directory`, and the picture beside it where it can be drawn.

    `content` is that of `replaceme.json`. `base` is from the card of the original, `is_chat`: the tokenizer has a chat
    template, `structure` is that of the maps that this model takes, and `has_text`: a model of images has a tower for
    text, too.
    `ModelCard` parses the header that it is given, and refuses what is no valid one.
    """
    report, spec = Report(content), ResolvedSpec.model_validate(content["spec"])
    removed, kept = report.blocks("removed_blocks"), report.blocks("kept_blocks")
    auto_class = report.text("auto_class")
    model, hub, blocks = spec.model, report.text("hub"), len(removed) + len(kept)
    short = model.repo_id.split("/")[-1]
    repository = model.repo_id if hub and model.revision is not None else None
    title = f"{short}, {len(kept)} of {blocks} blocks"
    again = spec.model_copy(update={"ratio": ratio_of(len(removed), blocks)}) if spec.searches else spec
    body = _template().render(
        report=report,
        view=view,
        spec=spec,
        base=base,
        is_chat=is_chat,
        auto_class=auto_class,
        has_text=has_text,
        title=title,
        short=short,
        kept=len(kept),
        blocks=blocks,
        removed=removed,
        repository=repository,
        page=f"{hub}/{model.repo_id}/tree/{model.revision}",
        files=sum(one.is_file for one in spec.texts),
        place=(hub and spec.output.repo_id) or "path/to/this/directory",
        how=_how(spec, Method(report.text("chosen_method")), structure),
        picture=_draw(report, directory),
        cuts=_compared_cuts(report),
        again=_request(again, of_images=report.of_images),
    )
    task = _TASKS.get(auto_class, "image-text-to-text")
    if auto_class == IMAGE_MODEL and has_text:
        task = "zero-shot-image-classification"
    of_hub = _header(report, spec, base, title=title, repository=repository, task=task)
    fields = of_hub.to_dict()  # type: ignore[no-untyped-call]
    header = ModelCardData(**_printable(fields))
    ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + re.sub(r"\n{3,}", "\n\n", body)).save(directory / CARD)


def _header(
    report: Report, spec: ResolvedSpec, base: BaseCard, *, title: str, repository: str | None, task: str
) -> ModelCardData:
    """What the Hub reads. Licence and languages are those of the original; what is not known is left out."""
    text = spec.calibration
    on_hub = {name: source for name, source in zip(text.names, text.mix, strict=True) if source.is_on_hub}
    results = []
    for place in report.places("texts"):
        name = report.text(*place, "name")
        before, after = (report.number(*place, side) for side in view.SIDES)
        assert before is not None and after is not None
        source = on_hub.get(name)
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="Language modelling",
                dataset_type=source.name if source else _NOT_OF_A_DATA_SET.sub("-", name.removeprefix(BUILTIN_PREFIX)),
                dataset_name=name,
                dataset_config=source.config if source else None,
                dataset_split=source.split if source else None,
                dataset_revision=source.revision if source else None,
                dataset_args={
                    "tokens": report.at(*place, "tokens"),
                    "sequence_length": text.max_length,
                    "original_model": round(before, 4),
                },
                metric_type="perplexity",
                metric_name="Perplexity",
                metric_value=round(after, 4),
            )
        )
    return ModelCardData(
        license=base.licence,
        license_name=base.name,
        license_link=base.link,
        language=list(base.languages) or None,
        base_model=repository,
        base_model_relation=RELATION if repository else None,
        library_name="transformers",
        pipeline_tag=task,
        tags=list(TAGS),
        datasets=list(dict.fromkeys(one.name for one in on_hub.values())) if report.text("hub") and on_hub else None,
        metrics=["perplexity"] if results else None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _printable(value: Any) -> Any:
    """A value of the header, with all text in it printable."""
    match value:
        case str():
            return printable(value)
        case list():
            return [_printable(one) for one in value]
        case dict():
            return {name: _printable(one) for name, one in value.items()}
    return value


def _how(spec: ResolvedSpec, name: Method, structure: MapStructure) -> Markup:
    """How the blocks were chosen and what compensates for them, in the words of the method's traits."""
    traits = TRAITS[name]
    card = traits.card.format(name=name, **_SHAPE_AND_PLACE[structure])
    if traits.selection_card is None:
        return Markup(card)
    how = traits.selection_card if spec.drop is None else "They are named in its specification"
    return Markup(f"{how} (method `{name}`). {card}")


def _draw(report: Report, directory: Path) -> str | None:
    """Draw how much each block of the original changes, and which are gone; the name of the picture.

    `None` where the angles were not computed, and where matplotlib (extra `plot`) is not installed.
    """
    plot = influence(report)
    if plot is None:
        return None
    if not can_draw():
        logger.info("card and report get no pictures: matplotlib is not installed (pip install 'replaceme[plot]')")
        return None
    (directory / PICTURE).write_bytes(rendered(plot, "png"))
    return PICTURE


def _compared_cuts(report: Report) -> Table | None:
    """The alternatives that were tried to the end, the chosen one first; `None` where there was one."""
    rows = report.places("candidates", most=view.MOST_CANDIDATES)
    if any(report.number(*base, name) is not None for base in rows for name in view.ORDERS):
        return None  # no alternatives to each other
    tried = sum(report.number(*base, "held_out_loss") is not None for base in rows)
    table = view.candidates(report)
    return table.only("blocks", "held_out_loss", most=min(tried, MOST_ROWS)) if table and tried > 1 else None


@cache
def _template() -> Template:
    # it escapes, so that what a macro returns is `Markup`, and is not made text again
    environment = templates_in(Path(__file__).parent / "templates", finalize=_finalize)
    environment.filters |= {
        "code": lambda text: Markup(markdown_code(text)),
        "fenced": _fenced,
        "percent": lambda value: Markup(percent(value)),
        "table": lambda table: Markup(markdown_table(table)),
    }
    environment.globals |= {
        "answer": ANSWER_CHARACTERS,
        "counted": lambda number, things: Markup(counted(number, things)),
        "likeliest": HEAL_LIKELIEST,
        "link": lambda text, address: Markup(f"[{markdown(text)}]({quote(printable(address), safe='/:')})"),
        "other": OTHER,
        "perplexity": PERPLEXITY,
        "ranges": block_ranges,
        "loss": LOSS,
        "ratio": RATIO,
        "self_generated": SELF_GENERATED,
        "whole": WHOLE,
    }
    return environment.get_template("card.md.jinja")


def _finalize(value: object) -> object:
    match value:
        case Markup():
            return value
        case Shown(value=float() | int()):
            return Markup(value.text)
        case Shown():
            return Markup(markdown(value.text))
    return Markup(markdown(str(value)))


def _fenced(text: str, language: str) -> Markup:
    """A block of code, with a fence that is in no line of it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{fence}{language}\n{printable(text, lines=True)}\n{fence}")


def _request(spec: ResolvedSpec, *, of_images: bool) -> str:
    """The body of `POST /jobs`, without what is at its default or decides nothing; `of_images`: or what is of text."""
    body = spec.model_dump(mode="json", exclude=NOT_DECIDING, exclude_none=True, exclude_defaults=True)
    for name in OF_TEXT if of_images else ():
        body["calibration"].pop(name, None)
    return json.dumps(body, indent=2)
