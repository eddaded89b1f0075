"""The model card, for somebody who finds the model and has never read of this project: one template over a run.

Strangers wrote much of what it shows: names, the licence, answers of models, warnings that quote them. So whatever the
template prints is made text for Markdown, unless it is `Markup`: numbers, code and sentences of ours. YAML quotes what
the header holds.
"""

import logging
import re
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from replaceme_core.engine.evaluation.compare import NEW_TOKENS
from replaceme_core.engine.results.base_card import OTHER
from replaceme_core.engine.results.card.again import as_command, as_request
from replaceme_core.engine.results.outcome import RunOutcome, disagreements
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.families.layout import MapStructure
from replaceme_core.report.plots.influence import draw_influence
from replaceme_core.report.plots.style import can_draw, rendered
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.fields import BUILTIN_PREFIX
from replaceme_core.request.gate import by_depth, trial_rows
from replaceme_core.request.method import TRAITS
from replaceme_core.request.removal import block_ranges
from replaceme_core.wording import counted, markdown, markdown_code, printable

CARD, PICTURE = "README.md", "layers.png"
ANSWER_CHARACTERS = 240
MOST_ROWS = 8
TAGS = ("depth-pruning", "pruned", "replaceme", "compression")
RELATION = "finetune"
"""The Hub knows adapter, finetune, merge and quantized; of these only this one means other weights of one kind."""
_SHAPE_AND_PLACE = {
    MapStructure.FULL: {"shape": "linear", "place": "output projection"},
    MapStructure.DIAGONAL: {"shape": "diagonal", "place": "last norm"},
}

logger = logging.getLogger(__name__)


def write_card(directory: Path, outcome: RunOutcome) -> None:
    """Write `README.md` into `directory`, and the picture beside it where it can be drawn.

    `ModelCard` parses the header that it is given, and refuses what is no valid one.
    """
    model, hub = outcome.spec.model, outcome.provenance.hub
    short, blocks = model.repo_id.split("/")[-1], len(outcome.removed) + len(outcome.kept)
    repository = model.repo_id if hub is not None and model.revision is not None else None
    title = f"{short}, {len(outcome.kept)} of {blocks} layers"
    body = _template().render(
        run=outcome,
        title=title,
        short=short,
        blocks=blocks,
        repository=repository,
        page=f"{hub}/{model.repo_id}/tree/{model.revision}",
        place=(hub and outcome.spec.output.repo_id) or "path/to/this/directory",
        how=_how(outcome),
        picture=_draw(outcome, directory),
        cuts=_compared_cuts(outcome),
        disagreements=disagreements(outcome.candidates),
        trials=_trials(outcome),
    )
    fields = _header(outcome, title=title, repository=repository).to_dict()  # type: ignore[no-untyped-call]
    header = ModelCardData(**_printable(fields))
    ModelCard(f"---\n{header.to_yaml()}\n---\n\n" + re.sub(r"\n{3,}", "\n\n", body)).save(directory / CARD)


def _header(outcome: RunOutcome, *, title: str, repository: str | None) -> ModelCardData:
    """What the Hub reads. Licence and languages are those of the original; what is not known is left out."""
    base, text = outcome.base_card, outcome.spec.calibration
    on_hub = {source.name: source for source in text.mix if source.is_on_hub}
    results = []
    for one in outcome.texts:
        source = on_hub.get(one.name)
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="Language modelling",
                dataset_type=one.name.removeprefix(BUILTIN_PREFIX),
                dataset_name=one.name,
                dataset_config=source.config if source else None,
                dataset_split=source.split if source else None,
                dataset_revision=source.revision if source else None,
                dataset_args={
                    "tokens": one.tokens,
                    "sequence_length": text.max_length,
                    "original_model": round(one.before, 4),
                },
                metric_type="perplexity",
                metric_name="Perplexity",
                metric_value=round(one.after, 4),
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
        pipeline_tag="text-generation",
        tags=list(TAGS),
        datasets=list(on_hub) if outcome.provenance.hub is not None and on_hub else None,
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


def _how(outcome: RunOutcome) -> Markup:
    """How the layers were chosen and what compensates for them, in the words of the method's traits."""
    name, traits = outcome.method, TRAITS[outcome.method]
    card = traits.card.format(name=name, **_SHAPE_AND_PLACE[outcome.structure])
    if traits.selection_card is None:
        return Markup(card)
    how = traits.selection_card if outcome.spec.drop is None else "They were named in the request"
    return Markup(f"{how} (method `{name}`). {card}")


def _draw(outcome: RunOutcome, directory: Path) -> str | None:
    """Draw how much each layer of the original changes, and which are gone; the name of the picture.

    `None` where the angles were not computed, and where matplotlib (extra `plot`) is not installed.
    """
    angles = outcome.layer_angles
    if angles is None:
        return None
    if not can_draw():
        logger.info("card and report get no pictures: matplotlib is not installed (pip install 'replaceme[plot]')")
        return None
    draw = partial(draw_influence, angles.blocks, removed=frozenset(outcome.removed), name="layer")
    (directory / PICTURE).write_bytes(rendered(draw, "png"))
    return PICTURE


def _compared_cuts(outcome: RunOutcome) -> list[Candidate]:
    """The alternatives that were tried to the end: the chosen one, then the best; empty where there was one."""
    tried = [
        row for row in outcome.candidates if row.held_out_loss is not None and row.step is None and row.group is None
    ]
    tried.sort(key=lambda row: (not row.chosen, row.held_out_loss))
    return tried[:MOST_ROWS] if len(tried) > 1 else []


def _trials(outcome: RunOutcome) -> list[list[Markup]]:
    """The cells of a row for each depth that was tried, that of this model bold; empty where one was asked for."""
    found = []
    for (first, *rest), one in zip(trial_rows(outcome.trials), by_depth(outcome.trials), strict=True):
        number, space, star = first.partition(" ")
        number = f"**{number}**" if one.blocks == len(outcome.removed) else number
        found.append([Markup(f"{number}{space}{star}"), *map(Markup, rest)])
    return found


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # what a macro returns is `Markup`, and is not made text again
        finalize=lambda value: value if isinstance(value, Markup) else Markup(markdown(str(value))),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": lambda text: Markup(markdown_code(text)),
        "fenced": _fenced,
        "form": lambda value, form: Markup(format(value, form)),
        "brief": _brief,
    }
    environment.globals |= {
        "as_command": as_command,
        "as_request": as_request,
        "counted": lambda number, things: Markup(counted(number, things)),
        "link": lambda text, address: Markup(f"[{markdown(text)}]({quote(printable(address), safe='/:')})"),
        "new_tokens": NEW_TOKENS,
        "other": OTHER,
        "ranges": block_ranges,
        "self_generated": SELF_GENERATED,
    }
    return environment.get_template("card.md.jinja")


def _fenced(text: str, language: str) -> Markup:
    """A block of code, with a fence that is in no line of it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{fence}{language}\n{printable(text, lines=True)}\n{fence}")


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return (line if len(line) <= ANSWER_CHARACTERS else line[: ANSWER_CHARACTERS - 1].rstrip() + "…") or "(nothing)"
