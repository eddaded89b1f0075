"""Speed as people quote it: how fast a prompt is read (prefill), and how fast new tokens follow (decode).

Every model runs once to warm up, then all run in turn several times, one sequence at a time, so that a machine that
slows down affects all alike. A difference that is within the spread of the runs tells nothing.
"""

import inspect
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from replaceme_core.engine.evaluation.live_bytes import LiveBytes, storages
from replaceme_core.engine.model.device import synchronise
from replaceme_core.families.resolve import resolve

RUNS, FEWEST_RUNS = 5, 3
PROMPT_TOKENS, NEW_TOKENS = 512, 16
SECONDS = 3.0
"""After so long no run begins once there are `FEWEST_RUNS`."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Tokens a second: the median of `runs`, the slowest and the fastest."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Rate":
        return cls(median=statistics.median(values), low=min(values), high=max(values), runs=len(values))

    @property
    def spread(self) -> float:
        return self.high - self.low


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one model. `cache_bytes_per_token` is the size of the KV cache after the prompt over its tokens.

    `peak_bytes` is the memory of the weights and the most that the tensors of one run took beside them.
    """

    prefill: Rate
    decode: Rate
    prompt_tokens: int
    new_tokens: int
    cache_bytes_per_token: float
    peak_bytes: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def told_apart(one: Rate, other: Rate) -> bool:
    """Whether the medians differ by more than the greater spread of the runs."""
    return abs(one.median - other.median) > max(one.spread, other.spread)


@torch.inference_mode()
def measure_speed(models: Sequence[PreTrainedModel], sequences: Sequence[torch.Tensor]) -> list[Speed]:
    """Run `models` in turn, each on the beginning of its sequence; all have one length, of 2 tokens or more."""
    length = len(sequences[0])
    read = min(PROMPT_TOKENS, max(length // 2, length - NEW_TOKENS))
    new_tokens = min(NEW_TOKENS, length - read)
    subjects = [
        _Runs(model, sequence[:read].unsqueeze(0), new_tokens=new_tokens)
        for model, sequence in zip(models, sequences, strict=True)
    ]
    for subject in subjects:
        subject.warm_up()
    began = time.perf_counter()
    for number in range(RUNS):
        if number >= FEWEST_RUNS and time.perf_counter() - began > SECONDS:
            break
        for subject in subjects:
            subject.run()
    return [subject.result() for subject in subjects]


class _Runs:
    """The runs of one model."""

    def __init__(self, model: PreTrainedModel, prompt: torch.Tensor, *, new_tokens: int) -> None:
        parameters = inspect.signature(model.forward).parameters
        # later releases of transformers have another name for it
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._options: dict[str, object] = dict.fromkeys(resolve(model).layout.switched_off, False)
        if "logits_to_keep" in parameters:
            self._options["logits_to_keep"] = 1
        self._model = model
        self._prompt = prompt.to(model.device)
        self._new_tokens = new_tokens
        self._prefill: list[float] = []
        self._decode: list[float] = []
        self._cache_bytes = self._peak = 0

    def warm_up(self) -> None:
        """One run that is not timed, of which the memory is counted."""
        weights = storages(self._model)
        with LiveBytes(set(weights)) as live:
            cache, logits = self._read()
            tensors = [getattr(layer, name) for layer in cache.layers for name in ("keys", "values")]
            self._cache_bytes = sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in tensors)
            self._write(cache, logits)
        self._peak = sum(weights.values()) + live.peak

    def run(self) -> None:
        synchronise(self._model.device)
        begin = time.perf_counter()
        cache, logits = self._read()
        synchronise(self._model.device)
        middle = time.perf_counter()
        self._write(cache, logits)
        synchronise(self._model.device)
        end = time.perf_counter()
        self._prefill.append(self._prompt.shape[1] / (middle - begin))
        self._decode.append(self._new_tokens / (end - middle))

    def _read(self) -> tuple[DynamicCache, torch.Tensor]:
        cache = DynamicCache(config=self._model.config)
        return cache, self._step(self._prompt, cache)

    def _write(self, cache: DynamicCache, logits: torch.Tensor) -> None:
        for _ in range(self._new_tokens):
            logits = self._step(logits[:, -1:].argmax(-1), cache)

    def _step(self, tokens: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The logits (1, kept positions, vocabulary)."""
        logits: torch.Tensor = self._model(
            input_ids=tokens, use_cache=True, **{self._cache_name: cache}, **self._options
        ).logits
        return logits

    def result(self) -> Speed:
        return Speed(
            prefill=Rate.of(self._prefill),
            decode=Rate.of(self._decode),
            prompt_tokens=self._prompt.shape[1],
            new_tokens=self._new_tokens,
            cache_bytes_per_token=self._cache_bytes / self._prompt.shape[1],
            peak_bytes=self._peak,
        )
