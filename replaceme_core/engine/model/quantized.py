"""Quantize the weights of the blocks to 4 or 8 bits while activations are captured (bitsandbytes).

The maps are folded into the weights as they are stored. The error of the quantisation is in the activations, and so in
the maps: full weights calibrate better where they fit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel

from replaceme_core.engine.model.lazy_model import open_model
from replaceme_core.engine.model.load import load_model
from replaceme_core.errors import InvalidInput
from replaceme_core.families.resolve import resolve
from replaceme_core.request.resolve import ResolvedCompute
from replaceme_core.request.spec import Quantization

LEAST_SHARE = 0.5
"""Share of the values of the blocks that must be quantizable. With less, too little memory is saved."""
MULTIPLE = 32
"""Rows and columns must be multiples of this for the kernels of some processors. Other layers stay as they are."""
FIELD = "compute.quantization"


def open_for_capture(directory: Path, *, dtype: torch.dtype, compute: ResolvedCompute) -> PreTrainedModel:
    """The model that activations are captured from, as `compute` says. Raises as `load_quantized`."""
    if compute.quantization is not None:
        return load_quantized(directory, dtype=dtype, compute=compute)
    return open_model(directory, dtype=dtype, device=compute.device, loading=compute.loading)


def load_quantized(directory: Path, *, dtype: torch.dtype, compute: ResolvedCompute) -> PreTrainedModel:
    """As `load_model`, with the linear layers of the blocks in `compute.quantization`; other weights in `dtype`.

    The host needs memory for the whole model in `dtype`. Raises `InvalidInput` where bitsandbytes is not installed, and
    for a family whose weights are not in linear layers (Conv1D, stacked experts); `BrokenModel` as `load_model`.
    """
    assert compute.quantization is not None
    make = _maker(compute.quantization, dtype=dtype)
    model = load_model(directory, dtype=dtype, device="cpu")
    blocks = resolve(model).blocks
    whole = sum(parameter.numel() for parameter in blocks.parameters())
    share = sum(module.weight.numel() for module in blocks.modules() if _fits(module)) / whole
    if share < LEAST_SHARE:
        raise InvalidInput(
            f"only {share:.0%} of the weights in the blocks of this {model.config.model_type} model can be quantized "
            f"to {compute.quantization} (linear layers with sides that are multiples of {MULTIPLE}); leave {FIELD} out",
            field=FIELD,
            value=str(compute.quantization),
        )
    for block in blocks:
        for parent in list(block.modules()):
            for name, child in parent.named_children():
                if _fits(child):
                    setattr(parent, name, make(child).to(compute.device))
    model.to(torch.device(compute.device))  # type: ignore[arg-type]  # typed as a decorated method without self
    model.eval()
    return model


def _fits(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear:
        return False
    return module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0


def _maker(quantization: Quantization, *, dtype: torch.dtype) -> Callable[[nn.Linear], nn.Module]:
    """A function that quantizes a layer in `dtype`; the values are rounded when it is moved to its device."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise InvalidInput(
            f"bitsandbytes is not installed on the worker ({error}); install replaceme[quantized] there, or "
            f"leave {FIELD} out",
            field=FIELD,
            value=str(quantization),
        ) from None

    def four(layer: nn.Linear) -> nn.Module:
        made: nn.Linear = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
        )
        made.weight = bitsandbytes.nn.Params4bit(
            layer.weight.detach(), requires_grad=False, quant_type="nf4", module=made
        )
        made.bias = layer.bias
        return made

    def eight(layer: nn.Linear) -> nn.Module:
        made: nn.Linear = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, bias=False, has_fp16_weights=False
        )
        made.weight = bitsandbytes.nn.Int8Params(layer.weight.detach(), requires_grad=False, has_fp16_weights=False)
        made.bias = layer.bias
        return made

    return four if quantization is Quantization.FOUR_BITS else eight
