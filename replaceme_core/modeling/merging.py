"""Blocks merged into the one before them: parameter differences added up (LaCo, arXiv 2402.11187, equation 2)."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from replaceme_core.families.kinds import kind
from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.capture import Cut, HeldOutStreams
from replaceme_core.modeling.changes import WeightChange
from replaceme_core.modeling.replay import Variant, summed_loss
from replaceme_core.numerics.moments import SOLVE_DTYPE


def mergeable(blocks: nn.ModuleList, cut: Cut) -> bool:
    """Whether the keeper and all blocks of `cut` are of one kind."""
    return all(kind(blocks[block]) == kind(blocks[cut.keeper]) for block in cut.blocks)


def merge_changes(blockwise: BlockwiseModel, cut: Cut) -> list[WeightChange]:
    """The sum of `theta_j - theta_keeper` over the blocks j of `cut`, for every floating parameter of the keeper."""
    changes = {
        name: parameter.detach().to(SOLVE_DTYPE) * -len(cut.blocks)
        for name, parameter in blockwise.loaded(cut.keeper).named_parameters()
        if parameter.is_floating_point()
    }
    for block in cut.blocks:
        parameters = dict(blockwise.loaded(block).named_parameters())
        for name, change in changes.items():
            change += parameters[name].detach()
    return [WeightChange(block=cut.keeper, parameter=name, change=change) for name, change in changes.items()]


@contextmanager
def merged(blockwise: BlockwiseModel, cuts: Sequence[Cut]) -> Iterator[None]:
    """While the context is open, the keepers of `cuts` run as they will be; their weights stay what they were."""
    with ExitStack() as stack:
        for cut in cuts:
            changes = merge_changes(blockwise, cut)
            stack.enter_context(_changed_while_run(blockwise.blocks[cut.keeper], changes))
        yield


@contextmanager
def _changed_while_run(block: nn.Module, changes: Sequence[WeightChange]) -> Iterator[None]:
    """Put in place by hooks, since the weights of a block may be in memory only while it runs."""
    originals: list[tuple[nn.Parameter, torch.Tensor]] = []

    def put(_module: nn.Module, _inputs: object) -> None:
        for one in changes:
            parameter = block.get_parameter(one.parameter)
            originals.append((parameter, parameter.data))
            parameter.data = (parameter.data + one.change).to(parameter.dtype)

    def take_back(_module: nn.Module, _inputs: object, _output: object) -> None:
        while originals:
            parameter, data = originals.pop()
            parameter.data = data

    handles = (block.register_forward_pre_hook(put), block.register_forward_hook(take_back, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def merged_loss(blockwise: BlockwiseModel, streams: HeldOutStreams, cut: Cut, *, batch: int) -> float:
    """Summed next-token loss in nats on one held-out batch, the keeper of `cut` merged (see `merged`)."""
    without = Variant(removed=frozenset(cut.blocks))
    stream = without.run(blockwise, streams.before[cut.keeper][batch], since=cut.keeper)
    return summed_loss(blockwise, stream, streams.tokens[batch])
