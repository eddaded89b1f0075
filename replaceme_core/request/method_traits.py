"""One row for each method: what others need to know of it without running it. Knows the standard library only.

The API checks options and predicts the time with these rows, and the model card takes its sentence from them, so they
stand here, below everything that imports torch. The code of a method is in the module that its row names. A method
without a row does not import.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final


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


class MapStructure(StrEnum):
    """Which entries of a linear map may differ from the identity.

    A norm between a projection and the residual stream admits a diagonal map only.
    """

    FULL = "full"
    DIAGONAL = "diagonal"


@dataclass(frozen=True, kw_only=True)
class MethodTraits:
    """What a method takes, needs and costs.

    `module`: has the function `calibrate` (`PruningMethod` in `replaceme_core.engine.methods.protocol`). `options`:
    the fields of `MethodSpec` that only some methods take, and that this one takes. `needs_sums_only`: for one
    window that a ratio chooses it reads nothing of the fit tokens but sums, so that they may be computed in shards.
    `changes_weights`: it tries changes on the weights of the live model, which quantised weights do not allow.
    `needs_like_blocks`: it mixes parameters of neighbouring blocks, which must be of one kind. `chooses_a_window`:
    it chooses among the windows whose sums it gets, so that some can be left out. `stage_weights`: how long its
    stages take, where that differs from `least_squares` (`replaceme_core.runner.eta`). `card`: the sentence of the
    model card; {shape} and {place} are those of the map. `selection_card`: how it selects blocks, where nothing
    compensates for them. `fits`: it fits something to the text, which a mix of texts serves; else the named text
    alone is read by default.
    """

    module: str
    card: str
    options: frozenset[str] = frozenset()
    needs_sums_only: bool = False
    changes_weights: bool = False
    needs_like_blocks: bool = False
    chooses_a_window: bool = False
    stage_weights: Mapping[str, float] = field(default_factory=dict)
    selection_card: str | None = None
    fits: bool = True


_PAPER = "[ReplaceMe](https://arxiv.org/abs/2505.02819)"
_MAP = (
    "A {shape} map, solved in closed form and folded into the {place} of the layer before them, "
    f"compensates for them (method `{{name}}`, after {_PAPER})."
)
_NOTHING = "Nothing compensates for them."

TRAITS: Final[Mapping[Method, MethodTraits]] = MappingProxyType(
    {
        Method.LEAST_SQUARES: MethodTraits(
            module="replaceme_core.engine.methods.least_squares",
            chooses_a_window=True,
            options=frozenset({"as_published", "groups", "structure"}),
            needs_sums_only=True,
            card=_MAP,
        ),
        Method.COSINE: MethodTraits(
            module="replaceme_core.engine.methods.cosine.method",
            chooses_a_window=True,
            options=frozenset({"groups", "loss", "structure"}),
            stage_weights={"solve": 40},
            card=_MAP,
        ),
        Method.DROP: MethodTraits(
            module="replaceme_core.engine.methods.drop",
            chooses_a_window=True,
            selection_card="They are the neighbours across which the hidden states turn least",
            fits=False,
            card=_NOTHING,
        ),
        Method.REFIT: MethodTraits(
            module="replaceme_core.engine.methods.refit.method",
            chooses_a_window=True,
            options=frozenset({"groups", "ridge_later", "selection"}),
            changes_weights=True,
            stage_weights={"select": 150, "solve": 225},
            card=(
                "Projections of the layers that stay were solved anew in closed form, from the first cut on, so that "
                "the model's hidden states follow those of the original (method `{name}`, building on "
                f"{_PAPER})."
            ),
        ),
        Method.AUTO: MethodTraits(
            module="replaceme_core.engine.methods.auto",
            options=frozenset({"ridge_later", "time_budget_seconds"}),
            changes_weights=True,
            stage_weights={"select": 110, "solve": 155},
            card="The best of several methods was taken (method `{name}`).",
        ),
        Method.BLOCK_INFLUENCE: MethodTraits(
            module="replaceme_core.engine.methods.block_influence",
            selection_card="They are those of least influence, after [ShortGPT](https://arxiv.org/abs/2403.03853)",
            fits=False,
            card=_NOTHING,
        ),
        Method.PERPLEXITY_GREEDY: MethodTraits(
            module="replaceme_core.engine.methods.perplexity_greedy",
            stage_weights={"select": 300},
            selection_card=(
                "They were removed one at a time, each time the layer whose removal costs the least loss, after "
                "[SLEB](https://arxiv.org/abs/2402.09025)"
            ),
            fits=False,
            card=_NOTHING,
        ),
        Method.MERGE: MethodTraits(
            module="replaceme_core.engine.methods.merge",
            changes_weights=True,
            needs_like_blocks=True,
            fits=False,
            card=(
                "The differences of their parameters to those of the layer before them were added to that layer "
                "(method `{name}`, after [LaCo](https://arxiv.org/abs/2402.11187))."
            ),
        ),
    }
)
if missing := set(Method) - set(TRAITS):
    raise ImportError(f"no traits for {', '.join(sorted(missing))}; add a row to TRAITS")


def methods_with(option: str) -> list[Method]:
    """The methods that take `option`; empty where every method does.

    >>> [str(method) for method in methods_with("groups")]
    ['least_squares', 'cosine', 'refit']
    """
    return [method for method in Method if option in TRAITS[method].options]
