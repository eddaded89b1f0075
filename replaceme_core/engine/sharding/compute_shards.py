"""Compute shards of another worker's job, one after the other, until none is left.

Only the model of the job is needed: the tokens are stored with the plan. A worker that would not get the same sums,
since its device, release or model differs, computes none.
"""

from pathlib import Path

import torch

from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.device import make_deterministic
from replaceme_core.engine.model.load import stored_weights
from replaceme_core.engine.model.quantized import open_for_capture
from replaceme_core.engine.sharding.shard_files import plan_key, read_plan, read_tokens
from replaceme_core.engine.sharding.sharded_pass import capture_shard, split_into_shards, write_shard
from replaceme_core.errors import Conflict
from replaceme_core.families.resolve import resolve
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.runner.messages import Exchange, ShardsEnded
from replaceme_core.runner.requests import ShardRequest

PROOF_TOKENS = 64


@torch.inference_mode()
def compute_shards(request: ShardRequest, exchange: Exchange) -> ShardsEnded:
    """Compute the shards that `exchange` assigns, and write their sums beside the plan.

    Raises `Conflict` if the plan is missing or made for another setup, and the errors of loading and running a model.
    """
    spec, directory = ResolvedSpec.of(request.spec), Path(request.shard_directory)
    plan = read_plan(directory)
    if plan is None or plan.plan != request.plan:
        raise Conflict("the plan of the shards is missing or was replaced")
    tokens = read_tokens(directory, plan)
    if tokens is None:
        raise Conflict("the tokens of the plan are missing")
    dtype = make_deterministic(spec.compute)
    if plan.key != plan_key(spec, plan.cuts, fit=tokens):
        raise Conflict("device, release or model differ from those that the shards were planned for")
    stored_weights(Path(request.model_directory))  # refuses what must not be built
    model = open_for_capture(Path(request.model_directory), dtype=dtype, compute=spec.compute)
    block_runner = BlockRunner(resolved=resolve(model))
    block_runner.prove(tokens[:1, :PROOF_TOKENS].to(model.device))
    shards = split_into_shards(tokens, batch_size=spec.compute.batch_size, count=plan.count)
    number = exchange.next(None).number
    while number is not None:
        sums = capture_shard(block_runner, plan.cuts, shards[number], step=_no_progress)
        write_shard(directory, plan, number, sums)
        del sums  # free the memory before the next shard
        number = exchange.next(number).number
    return ShardsEnded()


def _no_progress(_: int) -> None:
    """The worker that runs the job reports progress, by whole shards."""
