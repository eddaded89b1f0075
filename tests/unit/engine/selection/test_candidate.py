"""The rows of the table, as JSON."""

import json
import math

from replaceme_core.engine.methods.task import Candidate


def test_a_value_that_is_not_finite_is_not_known() -> None:
    row = Candidate(start=2, end=4, distance=math.nan, residual=math.inf, held_out_loss=3.5, chosen=True)
    shown = json.loads(json.dumps(row.as_dict(), allow_nan=False))
    assert (shown["distance"], shown["residual"], shown["held_out_loss"]) == (None, None, 3.5)
    assert (shown["start"], shown["end"], shown["chosen"]) == (2, 4, True)
