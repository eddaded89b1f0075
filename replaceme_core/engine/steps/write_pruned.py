"""Carry out a decision on the weights as they are stored, and save what comes out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from replaceme_core.engine.methods.change_block import change_block
from replaceme_core.engine.methods.protocol import Pruning
from replaceme_core.engine.model.save import save_block_by_block, save_model
from replaceme_core.engine.model.surgery import remove_blocks, scale_final_norm
from replaceme_core.families.resolve import resolve


def write_pruned(
    model: PreTrainedModel,
    output: Path,
    *,
    pruning: Pruning,
    source: Path,
    is_lazy: bool,
    begin_saving: Callable[[], None] = lambda: None,
) -> None:
    """Fold, remove and save into `output`; `model` is changed in place. `is_lazy`: it is read block by block."""
    resolved, removed = resolve(model), list(pruning.removed)
    scale_final_norm(resolved, pruning.final_scale)
    if is_lazy:
        begin_saving()
        change = partial(change_block, pruning=pruning)
        save_block_by_block(model, output, source=source, removed=removed, change=change)
        return
    for block in range(len(resolved.blocks)):
        change_block(resolved, block, pruning=pruning)
    remove_blocks(resolved, removed)
    begin_saving()
    save_model(model, output, source=source)
