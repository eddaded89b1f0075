"""Choose the blocks that a refit removes: one at a time, or a few runs of neighbouring blocks.

Each step removes the block, or the run, without which the held-out score after the fit is best. Every run of
neighbouring blocks gets its map, which is kept, so a step costs only replays and small solves (`SetLosses`). A step
tries runs in the order of their guesses and stops when the best one tried is not worse than the next guess (lazy
greedy: Minoux, Accelerated greedy algorithms, 1978); what is tried is compared in a tournament. Costs are differences
of scores (`Judge.score`). The cost of removing a block changes little as others are removed, so its cost in an earlier
step is a fair guess.

A block that costs least by itself may have neighbours that cost much, so a run is judged as a whole
(docs/explanation/how-the-default-works.md#runs). A choice of runs begins with equal lengths, since runs of every length
would be many times as many guesses; one move of an end from there finds better lengths nearby.

Where the streams of all the text would be too large to keep, blocks are chosen on a part of it: 567 GB for 32 blocks of
width 4,096 and 1,024 x 1,024 tokens. The choice only fits maps of d x d; the refit that follows uses all tokens.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.methods.judge import Judge, tournament
from replaceme_core.engine.methods.replay import held_out_judge, variant_losses
from replaceme_core.engine.methods.task import Candidate, PartOfStage, Task
from replaceme_core.engine.methods.windows import fit_on_fit_tokens
from replaceme_core.engine.model.changes import Cut, FittedCut, Variant, runs
from replaceme_core.request.defaults import (
    BLOCKS_IN_RUN,
    CHOICE_STREAM_BYTES,
    FIRST_BLOCKS,
    FOLLOWING,
    LEAST_RUNS,
    LEAST_TRIES,
    MOST_TRIES,
    MOVE_TRIES,
    OF_EACH_SOURCE,
    RUN_POSITIONS,
)
from replaceme_core.runner.messages import Stage

TOGETHER = 4
"""Batches that are run together, once enough of them are known to leave a set out."""
GUESSING, GUESSING_RUNS = 0.3, 0.4
"""Approximate share of the time that the first guesses take, of blocks and of runs."""
MOVING = 0.25
"""Approximate share of the time that a move of their ends takes."""

Run = tuple[int, ...]
"""Blocks that are removed together, in order."""


@dataclass(frozen=True, kw_only=True)
class BlockChoice:
    """The blocks that go, a row for every trial, and the held-out losses without the blocks."""

    removed: list[int]
    candidates: list[Candidate]
    losses: list[float]


def choose_blocks(task: Task) -> BlockChoice:
    """Blocks one at a time, on as much of the text as can keep its streams; begins `select` after the dense pass."""
    choosing = for_choice(task)
    choosing.activations.capture()
    task.begin(Stage.SELECT)
    with _chosen_on(task, choosing):
        return choose_one_by_one(choosing)


def choose_runs(task: Task) -> list[BlockChoice]:
    """A few runs of blocks that enough others follow, and one run, on as much of the text as can keep its streams."""
    choosing = for_choice(task)
    choosing.activations.capture()
    with _chosen_on(task, choosing):
        by_run, ways = RunByRun(task=choosing), divisions(task.remove)
        steps = [(number / len(ways), (number + 1) / len(ways)) for number in range(len(ways))]
        parts = [PartOfStage(task.progress, start=start, end=end) for start, end in steps]
        return [by_run.choose(lengths, advance=part.advance) for lengths, part in zip(ways, parts, strict=True)]


@contextmanager
def _chosen_on(task: Task, choosing: Task) -> Iterator[None]:
    """Report on how much of the text blocks are chosen, and count its runs as those of the task."""
    task.progress.metric("choice_tokens", choosing.calibration_tokens, "tokens")
    yield
    if choosing is not task:
        task.activations.dense_block_runs += choosing.activations.dense_block_runs


def keeps_all(task: Task) -> bool:
    """Whether the streams of all calibration tokens are small enough to keep."""
    return _bytes(task, sequences=len(task.tokens.fit) + len(task.tokens.held_out)) <= CHOICE_STREAM_BYTES


def positions_for_choice(task: Task) -> int | None:
    """`RUN_POSITIONS`; `None` where the held-out sequences are no longer."""
    return RUN_POSITIONS if task.tokens.held_out.shape[1] > RUN_POSITIONS else None


def batches_for_choice(task: Task) -> list[int]:
    """The held-out batches that blocks are chosen on: the same number of sequences of each source.

    `OF_EACH_SOURCE`, or all that the smallest source has if that is more: with one mean for each source, more of one
    source alone hardly make the score more certain.
    """
    sequences, numbers, seen = Counter[int](), list[int](), Counter[int]()
    for number in task.activations.held_out_batches:
        batch = task.activations.batches[number]
        sequences[batch.source] += len(batch.tokens)
    most = max(OF_EACH_SOURCE, min(sequences.values()))
    for number in task.activations.held_out_batches:
        batch = task.activations.batches[number]
        if seen[batch.source] < most:
            numbers.append(number)
            seen[batch.source] += len(batch.tokens)
    return numbers


def for_choice(task: Task) -> Task:
    """`task` itself, or the same with only as many sequences as can keep their streams; the held-out share is the same.

    Raises `CalibrationTooSmall` where these are too few for a map.
    """
    if keeps_all(task):
        return task
    fit, held_out = task.tokens.fit, task.tokens.held_out
    each = _bytes(task, sequences=1) - _bytes(task, sequences=0)
    share = (CHOICE_STREAM_BYTES - _bytes(task, sequences=0)) / (each * (len(fit) + len(held_out)))
    fit, held_out = (tokens[: max(1, int(len(tokens) * share))] for tokens in (fit, held_out))
    sources = task.activations.held_out_sources
    activations = replace(
        task.activations,
        fit=fit,
        held_out=held_out,
        held_out_sources=None if sources is None else sources[: len(held_out)],
        cached=None,
        store=None,
        complete=False,
        window_streams=None,
        dense_block_runs=0,
    )
    part = replace(task, tokens=task.tokens.first(fit=len(fit), held_out=len(held_out)), activations=activations)
    part.require_rank()
    return part


def _bytes(task: Task, *, sequences: int) -> int:
    return activation_bytes(task.block_runner, tokens=sequences * task.tokens.fit.shape[1])


class SetLosses:
    """On these held-out `batches`, all by default.

    With `positions` only these first ones of each sequence are run; `recall`: as `held_out_judge`.
    """

    def __init__(
        self, task: Task, *, batches: Sequence[int] | None = None, positions: int | None = None, recall: bool = False
    ) -> None:
        self._task = task
        self._positions = positions
        self._maps: dict[Cut, FittedCut] = {}
        self._known: dict[frozenset[int], list[float]] = {}
        self._numbers = task.activations.held_out_batches if batches is None else batches
        self.judge: Judge = held_out_judge(task.activations, positions=positions, recall=recall, batches=self._numbers)

    @property
    def first_look(self) -> int:
        """How many batches are run where a guess will do."""
        return max(len(self.judge.counts), self.judge.batches // 4)

    def loss(self, removed: Collection[int], batch: int) -> float:
        """On one held-out batch. Those that will be asked for as well are run with it."""
        known = self._known.setdefault(frozenset(removed), [])
        while len(known) <= batch:
            until = max(self.judge.first_verdict, len(known) + TOGETHER)
            known += self._losses(removed, self._numbers[len(known) : until], self._positions)
        return known[batch]

    def guess(self, removed: Collection[int]) -> list[float]:
        """On the first batches."""
        known = self._known[frozenset(removed)] = self._losses(
            removed, self._numbers[: self.first_look], self._positions
        )
        return list(known)

    def whole(self, removed: Collection[int]) -> list[float]:
        """On every held-out batch, and all of it; `held_out_judge` without `batches` and `positions` judges these."""
        return self._losses(removed, self._task.activations.held_out_batches, None)

    def _losses(self, removed: Collection[int], numbers: Collection[int], positions: int | None) -> list[float]:
        variant = Variant.of([self._map(cut) for cut in runs(sorted(removed))])
        return variant_losses(self._task.activations, variant, batches=list(numbers), positions=positions)

    def _map(self, cut: Cut) -> FittedCut:
        if cut not in self._maps:
            statistics = self._task.activations.statistics(cut)
            self._maps[cut] = fit_on_fit_tokens(statistics, ridge=self._task.spec.method.ridge).fitted
        return self._maps[cut]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The run to remove next, and the losses without each run that was tried, as many as were computed."""

    best: Run
    tried: Mapping[Run, list[float]]

    def rows(self, judge: Judge, *, number: int | None, is_part: bool = False) -> list[Candidate]:
        """A row for each trial of step `number`, `None` where it is the only one.

        `is_part`: `judge` sees a part of the held-out text.
        """
        beside = self.tried[self.best]
        return [
            row_of(
                Cut(start=run[0], end=run[-1]),
                losses,
                judge=judge,
                beside=beside,
                chosen=run == self.best,
                number=number,
                is_part=is_part,
            )
            for run, losses in self.tried.items()
        ]


def row_of(
    cut: Cut,
    losses: Sequence[float],
    *,
    judge: Judge,
    beside: Sequence[float],
    chosen: bool,
    number: int | None,
    is_part: bool,
) -> Candidate:
    """The row of `cut` in step `number`; where `losses` are fewer than those `beside` them, it is an estimate."""
    return Candidate(
        start=cut.start,
        end=cut.end,
        held_out_loss=judge.paired_mean(losses, beside=beside),
        estimated=is_part or len(losses) < judge.batches,
        source_losses=judge.by_source(losses, beside=beside),
        chosen=chosen,
        step=number,
    )


def next_run(
    order: Sequence[Run],
    *,
    guesses: Mapping[Run, float],
    losses: SetLosses,
    removed: Sequence[int],
    before: Sequence[float],
    least_tries: int,
) -> Step:
    """The best of `order`, which is sorted by `guesses`, once `removed` are gone; `before` are the losses then.

    A run without a guess is tried only among the first `least_tries`.
    """
    judge = losses.judge

    def loss(run: Run, batch: int) -> float:
        return losses.loss([*removed, *run], batch)

    best, tried = tournament(order[:least_tries], judge=judge, loss=loss, advance=lambda _: None)
    for run in order[least_tries:]:
        if judge.score(tried[best]) <= judge.score(before) + guesses.get(run, math.inf):
            break
        found = tried[run] = list[float]()
        while len(found) < judge.batches and not (
            found and judge.is_clearly_worse(found, than=tried[best][: len(found)])
        ):
            found.append(loss(run, len(found)))
        if len(found) == judge.batches and judge.score(found) < judge.score(tried[best]):
            best = run
    return Step(best=best, tried=tried)


def cost(judge: Judge, losses: Sequence[float], *, before: Sequence[float]) -> float:
    """How much the score grows, on the batches of `losses`."""
    return judge.score(losses) - judge.score(before[: len(losses)])


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


def early_blocks(blocks: int, *, remove: int) -> range:
    """Those of `blocks` that at least a third of the kept ones follow, without the first ones.

    What a removed block did is made up for in the blocks after it, which maps do not show: they flatter late blocks
    (docs/explanation/how-the-default-works.md#runs).

    >>> early_blocks(30, remove=8), early_blocks(6, remove=2)
    (range(3, 23), range(1, 5))
    """
    following = (blocks - remove) // FOLLOWING
    return range(max(1, min(blocks // FIRST_BLOCKS, following)), blocks - following)


def divisions(remove: int) -> list[list[int]]:
    """The ways to divide the blocks to remove: several runs, the longer ones first, and one.

    >>> [divisions(remove) for remove in (1, 2, 15)]
    [[[1]], [[1, 1], [2]], [[5, 5, 5], [15]]]
    """
    count = max(min(LEAST_RUNS, remove), remove // BLOCKS_IN_RUN)
    each, longer = divmod(remove, count)
    several = [each + 1] * longer + [each] * (count - longer)
    return [several] if count == 1 else [several, [remove]]


@dataclass(kw_only=True)
class RunByRun:
    """Losses are lists of sums in nats, one for each held-out batch from the first on.

    It leaves the last blocks alone (`early_blocks`), and looks at the beginning of as many held-out sequences of each
    source; repeated passages judge, too.
    """

    task: Task
    losses: SetLosses = field(init=False)
    judge: Judge = field(init=False)
    is_part: bool = field(init=False)
    guesses: dict[Run, float] = field(default_factory=dict)
    """By run: how much the score grows without it alone, on the first batches."""

    def __post_init__(self) -> None:
        positions, batches = positions_for_choice(self.task), batches_for_choice(self.task)
        self.is_part = positions is not None or batches != list(self.task.activations.held_out_batches)
        self.losses = SetLosses(self.task, batches=batches, positions=positions, recall=True)
        self.judge = self.losses.judge

    @property
    def _early(self) -> range:
        return early_blocks(len(self.task.block_runner.blocks), remove=self.task.remove)

    def choose(self, lengths: Sequence[int], *, advance: Callable[[float], None]) -> BlockChoice:
        """Runs of these lengths; an end of several ones is then moved (`moved_ends`), where that is better.

        `advance` is given the fraction that is done. Maps serve later choices as well.
        """
        removed, before = list[int](), list(self.judge.dense)
        candidates: list[Candidate] = []
        for number, length in enumerate(lengths, start=1):
            step = next_run(
                self._possible(removed, length, advance)[:MOST_TRIES],
                guesses=self.guesses,
                losses=self.losses,
                removed=removed,
                before=before,
                least_tries=LEAST_TRIES,
            )
            candidates += step.rows(self.judge, number=number if len(lengths) > 1 else None, is_part=self.is_part)
            removed, before = [*removed, *step.best], step.tried[step.best]
            advance((1 - MOVING) * (GUESSING_RUNS + (1 - GUESSING_RUNS) * number / len(lengths)))
        move = best_move(self.losses, removed, allowed=self._early) if len(lengths) > 1 else None
        if move is not None:
            removed, before = move.removed, move.losses
            moved = move.rows(self.judge, number=len(lengths) + 1, is_part=self.is_part)
            candidates = [*(replace(row, chosen=False) for row in candidates), *moved]
        advance(1.0)
        losses = self.losses.whole(removed) if self.is_part else before
        return BlockChoice(removed=sorted(removed), candidates=candidates, losses=losses)

    def _possible(self, removed: Sequence[int], length: int, advance: Callable[[float], None]) -> list[Run]:
        """Runs of `length` blocks that are neighbours once `removed` are gone, those with the best guesses first."""
        left = [block for block in self._early if block not in removed]
        found = [tuple(left[start : start + length]) for start in range(len(left) - length + 1)]
        apart = [run for run in found if run[-1] - run[0] == length - 1]
        for number, run in enumerate(run for run in apart if run not in self.guesses):
            self.guesses[run] = cost(self.judge, self.losses.guess(run), before=self.judge.dense)
            if not removed:
                advance((1 - MOVING) * GUESSING_RUNS * (number + 1) / len(apart))
        # a run around removed blocks is one long cut with these: it comes last
        return sorted(found, key=lambda run: self.guesses.get(run, math.inf))


def neighbours(removed: Collection[int], *, allowed: Collection[int]) -> list[Run]:
    """The sets of blocks one move away, in order; they have no more runs than `removed`.

    >>> neighbours([1, 2, 5], allowed=range(1, 6))
    [(1, 2, 3), (1, 4, 5), (2, 3, 5), (2, 4, 5)]
    """
    found = set[Run]()
    cuts = runs(sorted(removed))
    for released in sorted({block for cut in cuts for block in (cut.start, cut.end)}):
        left = sorted({*removed} - {released})
        for run in runs(left):
            for taken in (run.start - 1, run.end + 1):
                moved = tuple(sorted([*left, taken]))
                if taken in allowed and taken not in removed and len(runs(moved)) <= len(cuts):
                    found.add(moved)
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class Move:
    """The blocks to remove after a move, and the held-out losses by batch."""

    removed: list[int]
    losses: list[float]

    def rows(self, judge: Judge, *, number: int, is_part: bool) -> list[Candidate]:
        """A row for each run that goes, in step `number`; `is_part`: `judge` sees a part of the held-out text."""
        return [
            row_of(cut, self.losses, judge=judge, beside=self.losses, chosen=True, number=number, is_part=is_part)
            for cut in runs(self.removed)
        ]


def best_move(losses: SetLosses, removed: Sequence[int], *, allowed: Collection[int]) -> Move | None:
    """The move that lowers the score most among those tried; `None` where none of them lowers it."""
    judge, present = losses.judge, tuple(sorted(removed))
    possible = neighbours(removed, allowed=allowed)
    guesses = {blocks: cost(judge, losses.guess(blocks), before=judge.dense) for blocks in possible}
    found = next_run(
        [present, *sorted(possible, key=lambda blocks: guesses[blocks])],
        guesses=guesses,
        losses=losses,
        removed=(),
        before=judge.dense,
        least_tries=MOVE_TRIES,
    )
    if found.best == present:
        return None
    return Move(removed=list(found.best), losses=found.tried[found.best])
