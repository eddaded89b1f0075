"""Choose blocks one at a time: each step removes the one without which the held-out score, after the fit, is best.

Every run of neighbouring blocks gets its map (`set_losses`), so a step costs only replays and small solves. The cost of
removing a block changes little as others are removed, so its cost in an earlier step is a fair guess (`lazy_greedy`).
"""

from replaceme_core.engine.methods.protocol import Task
from replaceme_core.engine.methods.refit.lazy_greedy import BlockChoice, Run, cost, next_run
from replaceme_core.engine.methods.refit.set_losses import SetLosses
from replaceme_core.engine.selection.candidate import Candidate

LEAST_TRIES = 4
"""Blocks tried in each step whatever the guesses: a block may become cheap once its neighbour is removed."""
GUESSING = 0.3
"""Approximate share of the time that the first guesses take."""


def choose_one_by_one(task: Task) -> BlockChoice:
    """Greedy removal, one block in each step."""
    losses = SetLosses(task)
    judge, blocks = losses.judge, range(1, len(task.block_runner.blocks))
    before, removed = list(judge.dense), list[int]()
    guesses: dict[Run, float] = {}
    for block in blocks:
        guesses[(block,)] = cost(judge, losses.guess([block]), before=before)
        task.progress.advance(GUESSING * len(guesses) / len(blocks))
    candidates: list[Candidate] = []
    for number in range(1, task.remove + 1):
        order = sorted(guesses, key=lambda run: guesses[run])
        step = next_run(order, guesses=guesses, losses=losses, removed=removed, before=before, least_tries=LEAST_TRIES)
        candidates += step.rows(judge, number=number)
        guesses.update({run: cost(judge, found, before=before) for run, found in step.tried.items()})
        before = step.tried[step.best]
        removed += step.best
        del guesses[step.best]
        task.progress.advance(GUESSING + (1 - GUESSING) * number / task.remove)
    return BlockChoice(removed=removed, candidates=candidates, losses=before)
