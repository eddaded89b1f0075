"""Perplexity, speed and size of a model: the same settings for the dense and the pruned one."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from replaceme_core.modeling.load import weight_files

LOGITS_AT_ONCE = 2**26
"""Values of one batch of logits: 256 MiB in float32."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """`perplexity` over `tokens` predictions; `parameters` with tied ones counted once; `bytes` of weights on disk."""

    perplexity: float
    tokens: int
    parameters: int
    bytes: int
    tokens_per_second: float
    dtype: str
    blocks: int

    def as_dict(self) -> dict[str, float | int | str]:
        return asdict(self)


@torch.inference_mode()
def measure(
    model: PreTrainedModel, sequences: torch.Tensor, *, directory: Path, advance: Callable[[float], None] | None = None
) -> Measurement:
    """Measure `model`, saved in `directory`, on `sequences` (sequences, length): every token but each first one.

    Speed is that of whole forward passes with logits, the median over batches, after one that warms up.
    """
    vocabulary, length = model.config.vocab_size, sequences.shape[1]
    rows = max(1, LOGITS_AT_ONCE // (length * vocabulary))
    batches = [batch.to(model.device) for batch in sequences.split(rows)]
    model(input_ids=batches[0][:1], use_cache=False)
    loss, speeds = 0.0, []
    for done, batch in enumerate(batches, start=1):
        begin = time.perf_counter()
        logits = model(input_ids=batch, use_cache=False).logits
        _synchronise(model.device)
        speeds.append(batch.numel() / (time.perf_counter() - begin))
        predictions = logits[:, :-1].flatten(0, 1).float()
        loss += float(torch.nn.functional.cross_entropy(predictions, batch[:, 1:].flatten(), reduction="sum"))
        if advance is not None:
            advance(done / len(batches))
    count = sequences.shape[0] * (length - 1)
    return Measurement(
        perplexity=math.exp(min(loss / count, 700.0)),
        tokens=count,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes=sum(path.stat().st_size for path in weight_files(directory)),
        tokens_per_second=sorted(speeds)[len(speeds) // 2],
        dtype=str(model.dtype).removeprefix("torch."),
        blocks=model.config.num_hidden_layers,
    )


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
