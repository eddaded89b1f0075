"""A row of the table bound to a live model: its blocks and their writes, checked before any expensive work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from replaceme_core.errors import NumericalFailure, UnsupportedFamily
from replaceme_core.families.layout import FAMILIES, Inputs, Layout, MapStructure, Weight, Write, lookup, unmet

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest error of the residual identity relative to the write, median over tokens. At a wrong module it is about 1."""


def part_config(config: PreTrainedConfig, row: Layout | None = None) -> PreTrainedConfig:
    """The config of the tower that is compressed; of a type that has no row, that of its language model."""
    row = row or FAMILIES.get(config.model_type)
    part = config.get_text_config() if row is None or row.part is None else getattr(config, row.part)
    assert isinstance(part, PreTrainedConfig)
    return part


def embeddings(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """What a model of images makes of `pixels` (images, channels, height, width): (images, width of an embedding).

    Of a model that has a tower for text, what that compares with texts; else what is pooled, or at the first position.
    """
    tower = model.base_model
    found = (getattr(tower, "get_image_features", None) or tower)(pixel_values=pixels)
    if isinstance(found, torch.Tensor):
        return found
    pooled: torch.Tensor | None = getattr(found, "pooler_output", None)
    return found.last_hidden_state[:, 0] if pooled is None else pooled


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model with its row of the table."""

    model: PreTrainedModel
    layout: Layout
    _found: WeakKeyDictionary[nn.Module, tuple[Write, ...]] = field(
        default_factory=WeakKeyDictionary, init=False, compare=False, repr=False
    )
    """What each block writes. To look takes as long as running a block of a tiny model."""

    @property
    def config(self) -> PreTrainedConfig:
        """The config of the tower that is compressed, which may be part of that of the whole model."""
        return part_config(self.model.config, self.layout)

    @property
    def root(self) -> PreTrainedModel:
        """The module that the paths of the row begin at: of a model of images, that without a head."""
        root = self.model.base_model if self.layout.inputs is Inputs.IMAGES else self.model
        assert isinstance(root, PreTrainedModel)
        return root

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = self.root.get_submodule(self.layout.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def writes(self, block: nn.Module) -> tuple[Write, ...]:
        """What `block` adds to the stream, in the order of computation. Raises `AttributeError` for an unknown kind."""
        if block in self._found:
            return self._found[block]
        problems = []
        for writes in self.layout.kinds:
            try:
                for write in writes:
                    self._check(block, write)
                self._found[block] = writes
                return writes
            except AttributeError as error:
                problems.append(str(error))
        raise AttributeError("; ".join(dict.fromkeys(problems)))

    def scale(self, write: Write) -> float:
        """The factor by which the output is multiplied before it is added."""
        return 1.0 if write.scale is None else float(getattr(self.config, write.scale))

    def _check(self, block: nn.Module, write: Write) -> None:
        """Raise `AttributeError` unless `block` has all that `write` names, as it is described."""
        for path in (write.module, write.unit or ""):
            block.get_submodule(path)
        if write.gain is not None:
            block.get_parameter(write.gain)
        if write.projection is not None:
            module = block.get_submodule(write.projection.module)
            if not isinstance(module, nn.Linear | Conv1D):
                raise AttributeError(f"{write.projection.module} is a {type(module).__name__}, not a linear module")
        for weight in (*write.folds, *write.reads):
            self._check_weight(block, weight, transposed_axis=2 if weight in write.folds else 1)
        biases = with_biases(block, write.folds)[len(write.folds) :]
        if biases and any(weight.offset is not None for weight in write.folds):
            raise AttributeError(f"{biases[0].path} is the bias of a norm, which cannot absorb a map")

    def _check_weight(self, block: nn.Module, weight: Weight, *, transposed_axis: int) -> None:
        """Raise `AttributeError` unless `block` has the weight, as wide as the stream along its axis.

        Of experts that are stored transposed, the axis is the `transposed_axis`.
        """
        module, width = block.get_submodule(weight.module), self.config.hidden_size
        shape = tuple(block.get_parameter(weight.path).shape)
        if isinstance(module, nn.Linear) and weight.path.endswith(".weight"):  # quantised values have another shape
            shape = (module.out_features, module.in_features)
        if len(shape) <= weight.axis or shape[weight.axis] != width:
            raise AttributeError(f"{weight.path} is {shape}: its axis {weight.axis} is not {width} wide")
        # Where inner and outer width are equal, the shape does not show the order of the axes; the class does.
        transposed = getattr(module, "is_transposed", None)
        if isinstance(transposed, bool) and len(shape) == 3 and transposed != (weight.axis == transposed_axis):
            raise AttributeError(f"{weight.path} has its axes in another order")

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm after the last block, if it has a weight to absorb a factor. Raises `AttributeError`."""
        if self.layout.final_norm is None:
            return None
        norm = self.root.get_submodule(self.layout.final_norm.module)
        return norm if isinstance(getattr(norm, "weight", None), nn.Parameter) else None

    @property
    def structure(self) -> MapStructure:
        """The structure of the maps that every block of this model can absorb."""
        weights = (weight for block in self.blocks for weight in self.writes(block)[-1].folds)
        return MapStructure.DIAGONAL if any(weight.offset is not None for weight in weights) else MapStructure.FULL


def along(values: torch.Tensor, turn: torch.Tensor, *, axis: int) -> torch.Tensor:
    """`values` whose `axis`, of length d, is multiplied by `turn` (d, d): each row v along it becomes v T."""
    return torch.movedim(torch.movedim(values, axis, -1) @ turn, -1, axis)


def implied_bias(path: str) -> str:
    """The path of the bias that belongs to a weight.

    >>> implied_bias("mlp.down_proj.weight"), implied_bias("experts.down_proj")
    ('mlp.down_proj.bias', 'experts.down_proj_bias')
    """
    owner, _, name = path.rpartition(".")
    return f"{owner}.bias" if name == "weight" else f"{path}_bias"


def with_biases(block: nn.Module, weights: Sequence[Weight]) -> list[Weight]:
    """The `weights` of a block, and after them the biases that belong to these, where it has any."""
    own = dict(block.named_parameters())
    return [*weights, *(Weight(path, -1) for one in weights if (path := implied_bias(one.path)) in own)]


def first_tensor(value: object) -> torch.Tensor | None:
    """`value`, or the first tensor in it."""
    return next((one for one in tree_leaves(value) if isinstance(one, torch.Tensor)), None)


def as_returned(value: object, count: int) -> object:
    """`value` as a module returns it that returns `count` values, this one first; alone where `count` is 0."""
    return (value, *[None] * (count - 1)) if count else value


def resolve(model: PreTrainedModel) -> ResolvedModel:
    """Bind `model` to its row. Raises `UnsupportedFamily` when there is none or its paths are not there."""
    row = lookup(model.config.model_type)
    if isinstance(row, str):
        raise UnsupportedFamily(row, value=model.config.model_type)
    resolved = ResolvedModel(model=model, layout=row)
    if reason := unmet(row, vars(resolved.config)):
        raise UnsupportedFamily(reason, value=row.model_type)
    try:
        blocks = resolved.root.get_submodule(row.blocks)
        if not isinstance(blocks, nn.ModuleList) or len(blocks) != resolved.config.num_hidden_layers:
            raise AttributeError(f"{row.blocks} is not a list of {resolved.config.num_hidden_layers} blocks")
        for block in blocks:
            absorb_gains(resolved, block)  # finds its writes
        _ = resolved.final_norm
    except AttributeError as error:
        raise UnsupportedFamily(
            f"this {row.model_type} model is not laid out as expected: {error}", value=row.model_type
        ) from None
    return resolved


@torch.no_grad()
def absorb_gains(resolved: ResolvedModel, block: nn.Module) -> None:
    """Multiply what computes the output of each write by its gain, which is one then, so that a full map fits.

    A block that is not in memory is left for when it is read.
    """
    for write in resolved.writes(block):
        gain = None if write.gain is None else block.get_parameter(write.gain)
        if gain is not None and not gain.is_meta and bool((gain != 1).any()):
            for weight in with_biases(block, write.folds):
                parameter = block.get_parameter(weight.path)
                parameter.copy_(along(parameter.double(), gain.double().diag(), axis=weight.axis))
            gain.fill_(1)


def check_residual(*, block: int, before: torch.Tensor, after: torch.Tensor, writes: Sequence[torch.Tensor]) -> float:
    """Check that `after` is `before` plus all `writes` for one block; all (tokens, d). Returns the relative error.

    Relative to the write, not the stream: if a write is missing, the error is about 1 however long the stream is. The
    median over tokens, since the stream of a sink token is so long that its rounding hides the write. Raises
    `NumericalFailure`.
    """
    for one in writes:
        if one.shape != after.shape:
            raise NumericalFailure(
                f"block {block} does not write the residual stream where expected: shape {tuple(one.shape)} is added "
                f"to {tuple(after.shape)}"
            )
    write = torch.stack([one.to(torch.float64) for one in writes]).sum(dim=0)
    error = (after.to(torch.float64) - before.to(torch.float64) - write).norm(dim=1)
    # 0 of 0 is no error: blocks that were inserted into a model may write nothing
    relative = float(torch.where(error == 0, error, error / write.norm(dim=1)).median())
    if not relative <= TOLERANCE[after.dtype]:
        raise NumericalFailure(
            f"block {block} is not the sum of its input and its writes: the error is "
            f"{relative:.2g} of the write; rounding explains at most {TOLERANCE[after.dtype]:g}"
            + ("" if after.dtype is torch.float32 else " where the stream is not much larger; try dtype float32")
        )
    return relative


_PLACES = ("layer_idx", "layer_number", "num_hidden_layers", "store_full_length_kv", "training")
"""Attributes that say where a block is, or whether others read what it computed, not what it computes."""


def kind(block: nn.Module) -> tuple[object, ...]:
    """A value that is equal for two blocks exactly if they compute the same function of stream and parameters.

    Made of the classes and names of their modules, the shapes of their parameters, and the plain attributes of their
    modules (whether attention is sliding, how many experts ...), apart from their place in the model.
    """
    found: list[object] = [(name, parameter.shape) for name, parameter in block.named_parameters()]
    for path, module in block.named_modules():
        plain = [one for one in sorted(vars(module).items()) if isinstance(one[1], bool | int | float | str | None)]
        found.append((path, type(module).__name__, *(one for one in plain if one[0] not in _PLACES)))
    return tuple(found)
