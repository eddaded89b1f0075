"""A row of the table bound to a live model: its blocks and taps, proved before any work is paid for."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from replaceme_core.errors import NumericalFailure, UnsupportedFamily
from replaceme_core.families.layout import Layout, Refusal
from replaceme_core.families.table import lookup

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Error of the residual identity relative to the write, median over tokens. A wrong tap is off by about 1."""


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model with its row of the table."""

    model: PreTrainedModel
    layout: Layout

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.model.get_submodule(self.layout.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def replace_blocks(self, blocks: nn.ModuleList) -> None:
        parent, _, name = self.layout.blocks.rpartition(".")
        setattr(self.model.get_submodule(parent), name, blocks)

    def attention_write(self, block: nn.Module) -> nn.Module:
        return block.get_submodule(self.layout.attention_write)

    def mlp_write(self, block: nn.Module) -> nn.Module:
        return block.get_submodule(self.layout.mlp_write)

    def projection(self, block: nn.Module) -> nn.Linear:
        """The linear layer that takes over the map."""
        module = block.get_submodule(self.layout.fold)
        if not isinstance(module, nn.Linear):
            raise UnsupportedFamily(
                f"{self.layout.fold} of {self.layout.model_type} is a {type(module).__name__}, not a linear layer",
                field="model",
                value=self.layout.model_type,
            )
        return module


def resolve(model: PreTrainedModel) -> ResolvedModel:
    """Bind `model` to its row. Raises `UnsupportedFamily` when there is none or its paths are not there."""
    row = lookup(model.config.model_type)
    if isinstance(row, Refusal):
        raise UnsupportedFamily(row.reason, field="model", value=row.model_type)
    resolved = ResolvedModel(model=model, layout=row)
    try:
        blocks = model.get_submodule(row.blocks)
        if not isinstance(blocks, nn.ModuleList) or len(blocks) != model.config.num_hidden_layers:
            raise AttributeError(f"{row.blocks} is not a list of {model.config.num_hidden_layers} blocks")
        for block in blocks:
            resolved.attention_write(block)
            resolved.mlp_write(block)
            resolved.projection(block)
    except AttributeError as error:
        raise UnsupportedFamily(
            f"this {row.model_type} model is not laid out as expected: {error}", field="model", value=row.model_type
        ) from None
    return resolved


def check_residual(
    *, block: int, before: torch.Tensor, after: torch.Tensor, attention: torch.Tensor, mlp: torch.Tensor
) -> float:
    """Prove `after == before + attention + mlp` for one block; all (tokens, d). Returns the relative error.

    Measured against the write, not the stream: a tap that is missing is then off by about 1 however long the stream
    is. Median over tokens, since a sink token's stream is so long that its own rounding hides the write.
    Raises `NumericalFailure`.
    """
    if attention.shape != after.shape or mlp.shape != after.shape:
        raise NumericalFailure(
            f"block {block} does not write the residual stream where expected: shapes {tuple(attention.shape)} and "
            f"{tuple(mlp.shape)} are added to {tuple(after.shape)}"
        )
    write = attention.to(torch.float64) + mlp.to(torch.float64)
    error = (after.to(torch.float64) - before.to(torch.float64) - write).norm(dim=1) / write.norm(dim=1)
    relative = float(error.median())
    if not relative <= TOLERANCE[after.dtype]:
        raise NumericalFailure(
            f"block {block} is not the sum of its input, attention write and MLP write: the error is "
            f"{relative:.2g} of the write, at most {TOLERANCE[after.dtype]:g} is rounding"
        )
    return relative
