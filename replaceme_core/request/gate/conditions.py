"""What the rest of a request must say so that its gate can be judged."""

from collections.abc import Sequence

from pydantic_core import PydanticCustomError

from replaceme_core.request.gate.spec import GateSpec
from replaceme_core.request.gate.suite import expanded


def check_conditions(gate: GateSpec | None, *, deepest: bool, evaluated: bool, tasks: Sequence[str]) -> None:
    """Raise `PydanticCustomError` where a gate is missing, or judges what is not measured.

    `deepest`: the deepest cut that passes is asked for.
    """
    if gate is None:
        if deepest:
            raise PydanticCustomError(
                "deepest_without_gate",
                "the deepest cut that passes a gate is asked for (ratio.max), and there is no gate: give gate, such as "
                "{example}, or ratio as a number",
                {"field": "gate", "example": '{"perplexity_ratio": {"max": 1.6}}'},
            )
        return
    if not evaluated:
        raise PydanticCustomError(
            "gate_without_evaluation",
            "a gate judges what the evaluation measures: turn evaluation.enabled on, or leave the gate out",
            {"field": "gate"},
        )
    run = expanded(tasks)
    missing = [name for name in gate.tasks or () if name not in run]
    if missing or (gate.accuracy_kept is not None and not run):
        raise PydanticCustomError(
            "gate_without_tasks",
            "the gate judges tasks that are not run: name {names} in evaluation.tasks",
            {"field": "gate", "names": ", ".join(missing) or "some"},
        )
