"""The sums over the fit tokens in shards: runs of batches that several workers may compute.

The size of a shard's sums does not depend on the number of tokens. Shards consist of whole batches and are added in the
order of their numbers, so the result depends on the number of shards alone, not on the number of workers or on which
of them was lost. Compared with one pass, only the order of the additions in float64 differs
(docs/decisions/0021-sharded-calibration.md has the bound).
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch

from replaceme_core.engine.activations.batches import Batch, held_out_batches
from replaceme_core.engine.activations.cut_sums import Screen
from replaceme_core.engine.activations.tensor_store import TensorStore
from replaceme_core.engine.activations.verified_file import delete_partial_files
from replaceme_core.engine.activations.window_sums import Windows, WindowSums, apply_screen, token_progress
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.cut import Cut
from replaceme_core.engine.sharding.shard_files import (
    Plan,
    check_room,
    include_sums,
    plan_key,
    write_plan,
    write_sums,
)
from replaceme_core.errors import OutOfSpace
from replaceme_core.request.calibration import held_out_samples
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.request.spec import Loading
from replaceme_core.runner.messages import Exchange
from replaceme_core.runner.requests import RunnerRequest

PAUSE_SECONDS = 0.5
"""Time between two requests while other workers compute all remaining shards."""

logger = logging.getLogger(__name__)


def resolve_shards(spec: ResolvedSpec, request: RunnerRequest) -> ResolvedSpec:
    """`spec` with its number of shards: 1 for a small job, and for one that needs more than sums."""
    calibration, compute = spec.calibration, spec.compute
    tokens = calibration.samples * calibration.max_length
    is_large = request.shard_tokens is not None and tokens >= request.shard_tokens
    count = request.spec.compute.shards or (request.shard_count if is_large else 1)
    if not spec.needs_sums_only or compute.loading is Loading.BLOCKWISE:  # a lazily loaded model stores its streams
        count = 1
    fit = calibration.samples - held_out_samples(calibration.samples)
    batches = -(-fit // compute.batch_size)
    return spec.model_copy(update={"compute": compute.model_copy(update={"shards": min(count, batches)})})


def split_into_shards(fit: torch.Tensor, *, batch_size: int, count: int) -> list[list[Batch]]:
    """The batches of each of `count` shards, as even as whole batches allow."""
    batches = [Batch(tokens=tokens) for tokens in fit.split(batch_size)]
    edges = [number * len(batches) // count for number in range(count + 1)]
    return [batches[first:last] for first, last in pairwise(edges)]


def capture_shard(
    block_runner: BlockRunner, cuts: Sequence[Cut], batches: Sequence[Batch], *, step: Callable[[int], None]
) -> WindowSums:
    """The sums of `cuts` over the fit tokens of one shard; `step` is called with the number of tokens of each batch."""
    sums = WindowSums.empty(cuts, resolved=block_runner.resolved, held_out=False)
    sums.add_fit(block_runner, batches, step=step)
    return sums


@dataclass(frozen=True, kw_only=True)
class ShardedPass:
    """A `WindowsPass` in as many shards as the resolved `spec` says.

    With a `directory` and an `exchange`, other workers may compute shards at the same time. The pass ends whatever
    they do: a shard that is not computed, or whose file is missing, is computed here.

    Shards contain all cuts, also those that a `screen` excludes: other workers begin before the screen has seen any.
    """

    spec: ResolvedSpec
    directory: Path | None = None
    exchange: Exchange | None = None

    @classmethod
    def of(cls, request: RunnerRequest, spec: ResolvedSpec, exchange: Exchange | None) -> Self:
        """That of a job whose specification has been resolved to `spec`."""
        place = request.shard_directory
        return cls(spec=spec, directory=None if place is None else Path(place), exchange=exchange)

    def __call__(
        self,
        block_runner: BlockRunner,
        cuts: Sequence[Cut],
        *,
        fit: torch.Tensor,
        held_out: torch.Tensor,
        batch_size: int,
        advance: Callable[[float], None],
        sources: torch.Tensor | None = None,
        streams: TensorStore | None = None,
        screen: Screen | None = None,
    ) -> Windows:
        count = self.spec.compute.shards
        resolved = block_runner.resolved
        shards = split_into_shards(fit, batch_size=batch_size, count=count)
        whole = fit.numel() + held_out.numel()
        # first, so that other workers begin while the held-out tokens are run here
        plan = self._plan(cuts, fit, width=resolved.model.config.hidden_size)
        halves = WindowSums.empty(cuts, resolved=resolved)
        work = held_out_batches(held_out, batch_size, sources)
        step = token_progress(advance, total=whole)
        held = halves.add_held_out(block_runner, work, streams=streams, step=step, at_once=batch_size)
        held_out_sums = apply_screen(halves, screen)
        del halves
        if plan is not None:
            self._compute_with_others(plan, block_runner, shards, before=held_out.numel(), whole=whole, advance=advance)
        total = WindowSums.empty(cuts, resolved=resolved, held_out=False)
        step = token_progress(advance if plan is None else _no_progress, total=whole)
        if plan is None:
            step(held_out.numel())
        for number, batches in enumerate(shards):
            if plan is None or not include_sums(self._file(plan, number), total, resolved=resolved):
                total.include(capture_shard(block_runner, cuts, batches, step=step))
        return total.with_held_out(held_out_sums).statistics(), held

    def _plan(self, cuts: Sequence[Cut], fit: torch.Tensor, *, width: int) -> Plan | None:
        """The plan that other workers read; `None` without other workers, or if the files cannot all be written."""
        count = self.spec.compute.shards
        if self.directory is None or self.exchange is None:
            return None
        key = plan_key(self.spec, cuts, fit=fit)
        try:
            plan = write_plan(self.directory, key=key, count=count, cuts=cuts, fit=fit)
            done = [number for number in range(count) if self._file(plan, number).exists()]
            check_room(self.directory, plan, missing=count - len(done), width=width)
        except (OSError, OutOfSpace) as error:
            logger.warning("all shards are computed on this worker, since they cannot be shared: %s", error)
            return None
        self.exchange.plan(plan.plan, count=count, done=done)
        return plan

    def _compute_with_others(
        self,
        plan: Plan,
        block_runner: BlockRunner,
        shards: Sequence[Sequence[Batch]],
        *,
        before: int,
        whole: int,
        advance: Callable[[float], None],
    ) -> None:
        """Compute shards here and wait for those of other workers, until all are done.

        `before` is the number of tokens that were run already, `whole` the number of all.
        """
        assert self.exchange is not None
        answer = self.exchange.next(None)
        while answer.done < answer.count:
            done = before + (whole - before) * answer.done / answer.count
            advance(done / whole)
            if answer.number is None:
                time.sleep(PAUSE_SECONDS)
                answer = self.exchange.next(None)
                continue
            tokens = 0

            def step(count: int, done: float = done) -> None:
                nonlocal tokens
                tokens += count
                advance((done + tokens) / whole)

            sums = capture_shard(block_runner, plan.cuts, shards[answer.number], step=step)
            try:
                write_shard(self._directory, plan, answer.number, sums)
            except OSError as error:
                logger.warning("a shard cannot be written; the missing shards are computed on this worker: %s", error)
                return
            del sums  # free the memory before the next shard
            answer = self.exchange.next(answer.number)

    @property
    def _directory(self) -> Path:
        assert self.directory is not None
        return self.directory

    def _file(self, plan: Plan, number: int) -> Path:
        return plan.shard(self._directory, number)


def write_shard(directory: Path, plan: Plan, number: int, sums: WindowSums) -> None:
    """Write the sums of a shard for the worker that runs the job. Raises `OSError`."""
    delete_partial_files(directory, f"{plan.shard(directory, number).name}.")
    if not write_sums(plan.shard(directory, number), sums):
        raise OSError(f"the sums of shard {number} cannot be read back")


def _no_progress(_: float) -> None:
    """Ignore progress: it would go backwards for a shard whose file is missing."""
