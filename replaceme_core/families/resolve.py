"""A row of the table bound to a live model: its blocks and their writes, checked before any expensive work."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from replaceme_core.errors import NumericalFailure, UnsupportedFamily
from replaceme_core.families.layout import Fold, FoldKind, Layout, MapStructure, Refusal
from replaceme_core.families.table import lookup, unmet

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest error of the residual identity relative to the write, median over tokens. At a wrong module it is about 1."""


@dataclass(frozen=True, kw_only=True)
class FoldTarget:
    """A weight of one block that absorbs the map, and its bias."""

    kind: FoldKind
    weight: nn.Parameter
    bias: nn.Parameter | None = None


@dataclass(frozen=True, kw_only=True)
class Projection:
    """The linear module of a block whose output is a write: for x (tokens, f), `x W'` (tokens, d) plus a bias.

    `parameter` is the path of its weight, relative to the block: (d, f), or (f, d) where `transposed`.
    """

    module: nn.Module
    parameter: str
    transposed: bool


@dataclass(frozen=True, kw_only=True)
class NormedWrite:
    """A projection whose output goes through `norm` before it is added to the stream.

    `parameter` is the path of the norm's weight w (d,) relative to the block; the norm computes `(offset + w) * x`.
    """

    projection: Projection
    norm: nn.Module
    parameter: str
    offset: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The parameters of a block, by their paths relative to it, that multiply the same input x (tokens, d).

    Each is (..., d), or (d, f) where `transposed`. `module` is a module whose input is x.
    """

    module: nn.Module
    parameters: tuple[str, ...]
    transposed: bool


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

    def attention(self, block: nn.Module) -> nn.Module:
        """The module of the attention with its output projection, without a norm of its output."""
        layout = self.layout
        projection = layout.attention_write if layout.normed_writes is None else layout.normed_writes[0]
        return block.get_submodule(projection.partition(".")[0])

    def mlp_write(self, block: nn.Module) -> nn.Module:
        return block.get_submodule(self.layout.mlp_write)

    def attention_projection(self, block: nn.Module) -> Projection | None:
        """The projection whose output is the attention's write; `None` where a norm comes after it."""
        return _projection(self.attention_write(block), self.layout.attention_write)

    def mlp_projection(self, block: nn.Module) -> Projection | None:
        """The projection whose output is the MLP's write; `None` with a norm after it, or with several experts."""
        for folds in self.layout.folds:
            if len(folds) == 1 and folds[0].kind in (FoldKind.LINEAR, FoldKind.CONV1D):
                try:
                    return _projection(block.get_submodule(folds[0].path), folds[0].path)
                except AttributeError:  # the block is of another kind
                    continue
        return None

    def normed_write(self, block: nn.Module, *, attention: bool) -> NormedWrite | None:
        """The projection and the norm after it; `None` where no norm is between projection and stream."""
        if self.layout.normed_writes is None:
            return None
        path = self.layout.normed_writes[0 if attention else 1]
        norm = self.layout.attention_write if attention else self.layout.mlp_write
        projection = _projection(block.get_submodule(path), path)
        assert projection is not None, f"{path} is not a projection"
        offset = 1.0 if self.layout.folds[0][0].kind is FoldKind.NORM_PLUS_ONE else 0.0
        module = block.get_submodule(norm)
        return NormedWrite(projection=projection, norm=module, parameter=f"{norm}.weight", offset=offset)

    def attention_reading(self, block: nn.Module) -> Reading:
        """The parameters that multiply the input of the attention. Raises `AttributeError`."""
        return self._reading(block, self.layout.attention_reads)

    def mlp_reading(self, block: nn.Module) -> Reading:
        """The parameters that multiply the input of the MLP, with router and experts. Raises `AttributeError`."""
        for paths in self.layout.mlp_reads:
            if _has(block, paths[0]):
                return self._reading(block, paths)
        raise AttributeError(f"the block has none of {', '.join(paths[0] for paths in self.layout.mlp_reads)}")

    def _reading(self, block: nn.Module, paths: tuple[str, ...]) -> Reading:
        modules = [block.get_submodule(path.rpartition(".")[0]) for path in paths]
        transposed = isinstance(modules[0], Conv1D)
        axis, width = (0 if transposed else -1), self.model.config.hidden_size
        for path in paths:
            shape = _shape(block, path)
            if shape[axis] != width:
                raise AttributeError(f"{path} is {shape}: it does not read a stream of width {width}")
        return Reading(module=modules[0], parameters=paths, transposed=transposed)

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block. Raises `AttributeError`."""
        return self.model.get_submodule(self.layout.final_norm.path)

    @property
    def takes_scale(self) -> bool:
        """Whether the final norm has a weight that can absorb a factor of its output."""
        return isinstance(getattr(self.final_norm, "weight", None), nn.Parameter)

    @property
    def write_scale(self) -> float:
        """The factor by which the block multiplies both writes before it adds them to the stream."""
        name = self.layout.residual_multiplier
        return 1.0 if name is None else float(getattr(self.model.config, name))

    @property
    def structure(self) -> MapStructure:
        """The structure of the maps that this family can absorb."""
        diagonal = any(fold.kind.diagonal for folds in self.layout.folds for fold in folds)
        return MapStructure.DIAGONAL if diagonal else MapStructure.FULL

    def fold_targets(self, block: nn.Module) -> tuple[FoldTarget, ...]:
        """All weights of `block` that absorb the map. Raises `AttributeError` if it is of no known kind."""
        problems = []
        for folds in self.layout.folds:
            try:
                return tuple(self._target(block, fold) for fold in folds)
            except AttributeError as error:
                problems.append(str(error))
        raise AttributeError("; ".join(problems))

    def _target(self, block: nn.Module, fold: Fold) -> FoldTarget:
        width = self.model.config.hidden_size
        if fold.kind is FoldKind.EXPERTS:
            weight = block.get_parameter(fold.path)
            experts = block.get_submodule(fold.path.rpartition(".")[0])
            # If inner and outer width are equal, the shape does not show the order of the axes; the class does.
            if weight.ndim != 3 or weight.shape[1] != width or getattr(experts, "is_transposed", None) is not False:
                raise AttributeError(f"{fold.path} is not (experts, {width}, inner), but {tuple(weight.shape)}")
            return FoldTarget(kind=fold.kind, weight=weight)
        module = block.get_submodule(fold.path)
        weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
        match fold.kind:
            case FoldKind.LINEAR:
                fits = (
                    isinstance(module, nn.Linear) and module.out_features == width
                )  # the shape, of quantised weights too
            case FoldKind.CONV1D:
                fits = isinstance(module, Conv1D) and weight.shape[1] == width
            case FoldKind.NORM | FoldKind.NORM_PLUS_ONE:
                fits = weight.shape == (width,) and bias is None
        if not fits:
            raise AttributeError(f"{fold.path} is a {type(module).__name__} that cannot absorb a map ({fold.kind})")
        assert bias is None or isinstance(bias, nn.Parameter)
        return FoldTarget(kind=fold.kind, weight=weight, bias=bias)


def _shape(block: nn.Module, path: str) -> tuple[int, ...]:
    """The shape of a parameter; of a linear layer from its sizes, since quantised values have another shape."""
    parent, _, name = path.rpartition(".")
    module = block.get_submodule(parent)
    if isinstance(module, nn.Linear) and name == "weight":
        return module.out_features, module.in_features
    return tuple(block.get_parameter(path).shape)


def _has(block: nn.Module, path: str) -> bool:
    try:
        block.get_parameter(path)
    except AttributeError:
        return False
    return True


def _projection(module: nn.Module, path: str) -> Projection | None:
    if not isinstance(module, nn.Linear | Conv1D):
        return None
    return Projection(module=module, parameter=f"{path}.weight", transposed=isinstance(module, Conv1D))


def resolve(model: PreTrainedModel) -> ResolvedModel:
    """Bind `model` to its row. Raises `UnsupportedFamily` when there is none or its paths are not there."""
    row = lookup(model.config.model_type)
    if isinstance(row, Refusal):
        raise UnsupportedFamily(row.reason, value=row.model_type)
    if broken := unmet(row, vars(model.config)):
        raise UnsupportedFamily(broken.reason, value=row.model_type)
    resolved = ResolvedModel(model=model, layout=row)
    try:
        blocks = model.get_submodule(row.blocks)
        if not isinstance(blocks, nn.ModuleList) or len(blocks) != model.config.num_hidden_layers:
            raise AttributeError(f"{row.blocks} is not a list of {model.config.num_hidden_layers} blocks")
        for block in blocks:
            resolved.attention_write(block)
            resolved.mlp_write(block)
            resolved.fold_targets(block)
            resolved.attention_reading(block)
            resolved.mlp_reading(block)
            resolved.normed_write(block, attention=True)
            resolved.normed_write(block, attention=False)
        _ = resolved.final_norm
    except AttributeError as error:
        raise UnsupportedFamily(
            f"this {row.model_type} model is not laid out as expected: {error}", value=row.model_type
        ) from None
    return resolved


def check_residual(
    *, block: int, before: torch.Tensor, after: torch.Tensor, attention: torch.Tensor, mlp: torch.Tensor
) -> float:
    """Check `after == before + attention + mlp` for one block; all (tokens, d). Returns the relative error.

    Relative to the write, not the stream: if a write is missing, the error is about 1 however long the stream is. The
    median over tokens, since the stream of a sink token is so long that its rounding hides the write. Raises
    `NumericalFailure`.
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
            f"{relative:.2g} of the write; rounding explains at most {TOLERANCE[after.dtype]:g}"
        )
    return relative


def kind(block: nn.Module) -> tuple[object, ...]:
    """A value that is equal for two blocks exactly if they compute the same function of stream and parameters.

    Made of the classes and names of their modules, the shapes of their parameters, and the plain attributes of their
    modules (whether attention is sliding, how many experts ...), apart from the slot in the KV cache.
    """
    modules = tuple((path, type(module).__name__, _plain(module)) for path, module in block.named_modules())
    return modules, tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())


def _plain(module: nn.Module) -> tuple[tuple[str, object], ...]:
    return tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float | str | None) and name not in ("layer_idx", "training")
    )
