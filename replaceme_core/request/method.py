"""The methods and their options: one row for each method says what others need to know of it without running it.

The API checks options and predicts the time with these rows, and the model card takes its sentence from them, so they
stand here, below everything that imports torch. The code of a method is in the module of its name, or that its row
names. A method without a row does not import.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from replaceme_core.families.layout import MapStructure
from replaceme_core.request import defaults
from replaceme_core.request.fields import Frozen, Seconds, one_of, wrong


class Method(StrEnum):
    """Which blocks are removed, and what compensates for them."""

    LEAST_SQUARES = "least_squares"
    COSINE = "cosine"
    DROP = "drop"
    REFIT = "refit"
    AUTO = "auto"
    BLOCK_INFLUENCE = "block_influence"
    PERPLEXITY_GREEDY = "perplexity_greedy"
    MERGE = "merge"


@dataclass(frozen=True, kw_only=True)
class MethodTraits:
    """What a method takes, needs and costs.

    `module` has its function, where that is not the module of its name (`replaceme_core.engine.methods.task`).
    `options`: the fields of `MethodSpec` that only some methods take, and that this one takes. `changes_weights`: it
    tries changes on the weights of the live model, which quantised weights do not allow. `needs_like_blocks`: it mixes
    parameters of neighbouring blocks, which must be of one kind. `chooses_a_window`: it chooses among windows, so that
    some can be left out. `stage_weights`: how long its stages take, where that differs from `least_squares`
    (`replaceme_core.plan.eta`). `card`: the sentence of the model card; {shape} and {place} are those of the map.
    `selection_card`: how it selects blocks, where nothing compensates for them. `fits`: it fits something to the text,
    which a mix of texts serves; else the named text alone is read by default.
    """

    card: str
    module: str | None = None
    options: frozenset[str] = frozenset()
    changes_weights: bool = False
    needs_like_blocks: bool = False
    chooses_a_window: bool = False
    stage_weights: Mapping[str, float] = field(default_factory=dict)
    selection_card: str | None = None
    fits: bool = True


_PAPER = "[ReplaceMe](https://arxiv.org/abs/2505.02819)"
_MAP = (
    "A {shape} map, solved in closed form and folded into the {place} of the block before them, "
    f"compensates for them (method `{{name}}`, after {_PAPER})."
)
_NOTHING = "Nothing compensates for them."

TRAITS: Final[Mapping[Method, MethodTraits]] = {
    Method.LEAST_SQUARES: MethodTraits(
        chooses_a_window=True,
        options=frozenset({"as_published", "groups", "structure"}),
        card=_MAP,
    ),
    Method.COSINE: MethodTraits(
        chooses_a_window=True,
        options=frozenset({"groups", "loss", "structure"}),
        stage_weights={"solve": 40},
        card=_MAP,
    ),
    Method.DROP: MethodTraits(
        module="removal",
        chooses_a_window=True,
        selection_card="They are the neighbours across which the hidden states turn least",
        fits=False,
        card=_NOTHING,
    ),
    Method.REFIT: MethodTraits(
        chooses_a_window=True,
        options=frozenset({"groups", "ridge_later", "selection"}),
        changes_weights=True,
        stage_weights={"select": 150, "solve": 75},
        card=(
            "Projections of the blocks that stay were solved anew in closed form, from the first cut on, so that "
            "the model's hidden states follow those of the original (method `{name}`, building on "
            f"{_PAPER})."
        ),
    ),
    Method.AUTO: MethodTraits(
        options=frozenset({"ridge_later", "time_budget_seconds"}),
        changes_weights=True,
        stage_weights={"select": 57, "solve": 122},
        card="The best of several methods was taken (method `{name}`).",
    ),
    Method.BLOCK_INFLUENCE: MethodTraits(
        module="removal",
        selection_card="They are those of least influence, after [ShortGPT](https://arxiv.org/abs/2403.03853)",
        fits=False,
        card=_NOTHING,
    ),
    Method.PERPLEXITY_GREEDY: MethodTraits(
        module="removal",
        stage_weights={"select": 300},
        selection_card=(
            "They were removed one at a time, each time the block whose removal costs the least loss, after "
            "[SLEB](https://arxiv.org/abs/2402.09025)"
        ),
        fits=False,
        card=_NOTHING,
    ),
    Method.MERGE: MethodTraits(
        changes_weights=True,
        needs_like_blocks=True,
        fits=False,
        card=(
            "The differences of their parameters to those of the block before them were added to that block "
            "(method `{name}`, after [LaCo](https://arxiv.org/abs/2402.11187))."
        ),
    ),
}
if missing := set(Method) - set(TRAITS):
    raise ImportError(f"no traits for {', '.join(sorted(missing))}; add a row to TRAITS")


def methods_with(option: str) -> list[Method]:
    """The methods that take `option`; empty where every method does.

    >>> [str(method) for method in methods_with("groups")]
    ['least_squares', 'cosine', 'refit']
    """
    return [method for method in Method if option in TRAITS[method].options]


CosineLoss = Literal["exact", "light"]


DEFAULT_METHODS = tuple(map(Method, defaults.METHODS))


class Selection(StrEnum):
    """How `refit` chooses the blocks that go."""

    ONE_BY_ONE = "one_by_one"
    """In each step the block without which the held-out loss is least."""
    WINDOW = "window"
    """One run of neighbours, as `least_squares` chooses it."""


class MethodSpec(Frozen):
    """The method and its strengths."""

    name: Annotated[Method, one_of(Method)] | None = None
    """Compression method. Default: auto where it can run, which takes longer and gives a better model, else
    least_squares.

    The worker decides, of `DEFAULT_METHODS`.
    """
    ridge: float | None = Field(default=None, ge=0, le=1e6)
    """Regularization of the map toward plain removal. Default: chosen on held-out tokens; refit: 0.3.

    It is relative to the mean diagonal of the Gram matrix.
    """
    replays: int = Field(default=6, ge=1, le=64)
    """Number of the best windows that are compared by held-out loss. Default: 6."""
    loss: CosineLoss = "exact"
    """Loss of the method cosine. Default: exact."""
    groups: int = Field(default=1, ge=1, le=64)
    """Number of cuts, separate runs of blocks (least_squares, cosine and refit only). Default: 1."""
    structure: Annotated[MapStructure, one_of(MapStructure)] | None = None
    """Structure of the map (least_squares and cosine only). Default: full where possible, else diagonal."""
    selection: Annotated[Selection, one_of(Selection)] = Selection.ONE_BY_ONE
    """How the method refit selects blocks. Default: one_by_one."""
    time_budget_seconds: Seconds | None = None
    """Seconds available to the method auto, which skips candidates that would take longer. Default: no limit."""
    ridge_later: float | None = Field(default=None, ge=0, le=1e6)
    """Regularization of the projections after the first removed block toward their old weights (refit and auto only).
    Default: 0.3."""
    as_published: bool = False
    """Run least_squares as the reference implementation does, for comparison."""

    @model_validator(mode="after")
    def _options_of_the_method(self) -> Self:
        methods: tuple[Method, ...] = DEFAULT_METHODS if self.name is None else (self.name,)
        for option in self._options_set():
            methods = tuple(method for method in methods if method in methods_with(option))
            if not methods:
                end = "; name the method" if self.name is None else f", not for {self.name}"
                raise wrong(option, f"{option} is for {' and '.join(methods_with(option))}{end}")
        if self.as_published and self.groups > 1:
            raise wrong("groups", "as published there is one cut")
        if self.as_published and self.structure is not None:
            raise wrong("structure", "as published the map is full")
        return self

    @property
    def possible(self) -> tuple[Method, ...]:
        """The method that is named, or those of `DEFAULT_METHODS` that take the options that are set."""
        if self.name is not None:
            return (self.name,)
        options = self._options_set()
        return tuple(one for one in DEFAULT_METHODS if all(one in methods_with(option) for option in options))

    def _options_set(self) -> list[str]:
        """The options of some methods only that differ from their defaults; a stored specification has every field."""
        fields = type(self).model_fields
        return [name for name in fields if methods_with(name) and getattr(self, name) != fields[name].default]
