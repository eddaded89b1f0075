"""Let the method decide, in its three steps, unless an earlier attempt at the job has left its decision."""

from replaceme_core.engine.methods.protocol import Calibrated, Pruning, Task, find_method
from replaceme_core.engine.results.checkpoint import Checkpoint
from replaceme_core.engine.results.stage_clock import StageClock
from replaceme_core.runner.messages import Stage
from replaceme_core.runner.requests import RunnerRequest


def decide(request: RunnerRequest, task: Task, *, clock: StageClock | None) -> Pruning:
    """What the method decides for `task`, kept for a later attempt. `clock` begins its stages; `None`: it has none."""
    checkpoint = Checkpoint.of(request, task)
    restored = checkpoint.restore()
    if restored is not None:
        if clock is not None:
            clock.begin(Stage.SOLVE, resumed_from=Stage.SOLVE)
        return restored
    selected = find_method(task.spec.method.name)(task)
    if isinstance(selected, Calibrated):  # else the request names the blocks
        if clock is not None:
            clock.begin(Stage.SELECT)
        selected = selected.select()
    if clock is not None:
        clock.begin(Stage.SOLVE)
    return checkpoint.keep(selected.solve())
