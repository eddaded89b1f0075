"""The best of several methods for this model, by held-out loss, within a time budget.

All contenders read the streams of one dense pass. They run in the order of what they cost; one that is not expected to
end within the budget is not begun, so the first always runs.
"""

from dataclasses import dataclass

from replaceme_core.methods.least_squares import least_squares
from replaceme_core.methods.protocol import PruningMethod
from replaceme_core.methods.refit import refit
from replaceme_core.spec import Method, Selection


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method with its settings. `times_first`: what it is expected to take, in times of the first contender.

    `once` is whether it is of use only where blocks are to be chosen.
    """

    name: str
    method: Method
    run: PruningMethod
    times_first: float
    selection: Selection = Selection.WINDOW
    once: bool = False


CONTENDERS = (
    Contender(name="least_squares", method=Method.LEAST_SQUARES, run=least_squares, times_first=1.0),
    Contender(name="refit-window", method=Method.REFIT, run=refit, times_first=4.0),
    Contender(
        name="refit-one_by_one",
        method=Method.REFIT,
        run=refit,
        times_first=10.0,
        selection=Selection.ONE_BY_ONE,
        once=True,
    ),
)
