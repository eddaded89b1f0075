"""Choose blocks on a part of the text, where the streams of all of it would be too large to keep.

Choosing blocks one by one needs the dense streams at every block: 567 GB for 32 blocks of width 4,096 and 1,024 x 1,024
tokens. It only fits maps of d x d, so a part of the tokens is enough; the refit that follows uses all of them.
"""

from collections import Counter
from dataclasses import replace

from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.methods.cuts import require_rank
from replaceme_core.engine.methods.protocol import Task

POSITIONS = 256
"""`auto` chooses blocks on this many first positions of each held-out sequence: more sequences are better evidence than
longer ones."""
OF_EACH_SOURCE = 4
"""Held-out sequences."""
STREAM_BYTES = 64 * 2**30
"""In memory or on disk. A fixed size, not what is free: the same request must choose the same blocks."""


def keeps_all(task: Task) -> bool:
    """Whether the streams of all calibration tokens are small enough to keep."""
    return _bytes(task, sequences=len(task.tokens.fit) + len(task.tokens.held_out)) <= STREAM_BYTES


def positions_for_choice(task: Task) -> int | None:
    """`POSITIONS`; `None` where the held-out sequences are no longer."""
    return POSITIONS if task.tokens.held_out.shape[1] > POSITIONS else None


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
    share = (STREAM_BYTES - _bytes(task, sequences=0)) / (each * (len(fit) + len(held_out)))
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
    require_rank(part)
    return part


def _bytes(task: Task, *, sequences: int) -> int:
    return activation_bytes(task.block_runner, tokens=sequences * task.tokens.fit.shape[1])
