"""Perplexity, speed and size of models, with the same settings for the dense and the pruned one."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from replaceme_core.admission.model_files import weight_files
from replaceme_core.errors import NumericalFailure

LOGITS_AT_ONCE = 2**26
"""Number of values in one batch of logits: 256 MiB in float32."""
LARGEST_LOSS = 700.0
"""Nats for each prediction: exp of more is infinite in float64."""


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


@dataclass(kw_only=True)
class Subject:
    """A model to measure, saved in `directory`, with its loss in nats and its tokens per second so far.

    `name` is for messages.
    """

    name: str
    model: PreTrainedModel
    directory: Path
    loss: float = 0.0
    speeds: list[float] = field(default_factory=list)

    def run(self, batch: torch.Tensor) -> None:
        """Run one forward pass with logits over `batch` (sequences, length)."""
        begin = time.perf_counter()
        logits = self.model(input_ids=batch, use_cache=False).logits
        _synchronise(self.model.device)
        self.speeds.append(batch.numel() / (time.perf_counter() - begin))
        predictions = logits[:, :-1].flatten(0, 1).float()
        self.loss += float(torch.nn.functional.cross_entropy(predictions, batch[:, 1:].flatten(), reduction="sum"))

    def result(self, predictions: int) -> Measurement:
        """The measurement after `predictions` predicted tokens.

        Raises `NumericalFailure` where the perplexity is NaN or infinite, which says nothing and is not in JSON.
        """
        loss, dtype = self.loss / predictions, str(self.model.dtype).removeprefix("torch.")
        if not loss < LARGEST_LOSS:
            raise NumericalFailure(
                f"the perplexity of {self.name} is {'infinite' if loss > 0 else 'not a number'} in {dtype}: its logits "
                "overflow or are not numbers; compute in float32 (compute.dtype), or check the weights of the model"
            )
        return Measurement(
            perplexity=math.exp(loss),
            tokens=predictions,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            bytes=sum(path.stat().st_size for path in weight_files(self.directory)),
            tokens_per_second=statistics.median(self.speeds),
            dtype=dtype,
            blocks=self.model.config.num_hidden_layers,
        )


@torch.inference_mode()
def measure(
    subjects: Sequence[Subject], sequences: torch.Tensor, *, advance: Callable[[float], None] | None = None
) -> list[Measurement]:
    """Measure `subjects` on `sequences` (sequences, length): all tokens but the first of each are predicted.

    Each batch runs on all subjects before the next, so that a machine that slows down affects all alike. Speed is the
    median over batches of whole forward passes with logits, after one warm-up pass.
    """
    vocabulary = max(subject.model.config.vocab_size for subject in subjects)
    length = sequences.shape[1]
    batches = sequences.split(max(1, LOGITS_AT_ONCE // (length * vocabulary)))
    for subject in subjects:
        subject.model(input_ids=batches[0][:1].to(subject.model.device), use_cache=False)
    for done, batch in enumerate(batches, start=1):
        for subject in subjects:
            subject.run(batch.to(subject.model.device))
        if advance is not None:
            advance(done / len(batches))
    predictions = sequences.shape[0] * (length - 1)
    return [subject.result(predictions) for subject in subjects]


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
