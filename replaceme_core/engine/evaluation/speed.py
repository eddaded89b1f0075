"""How much memory the tensors of a piece of work take at once, on any device.

Allocators keep what was freed, so the memory of the process tells little of a single model; here every tensor that an
operation makes is counted until it is freed.
"""

import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from replaceme_core.engine.model.decoding import Decoding
from replaceme_core.engine.model.device import synchronise


class LiveBytes(TorchDispatchMode):
    """A context; `peak` is the most bytes that new tensors took at once since it began.

    What an operation takes and frees inside itself is not seen. Storages in `known` are not counted.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._seen = known

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._live -= size


def storages(model: PreTrainedModel) -> dict[int, int]:
    """The sizes in bytes of what holds the weights, by address: shared ones count once."""
    tensors = [*model.parameters(), *model.buffers()]
    return {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}


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


@dataclass(frozen=True, kw_only=True)
class ImageSpeed:
    """Of one model of images: images a second, and memory as in `Speed`."""

    images: Rate
    peak_bytes: int


def told_apart(one: Rate, other: Rate) -> bool:
    """Whether the medians differ by more than the greater spread of the runs."""
    return abs(one.median - other.median) > max(one.spread, other.spread)


def speed_changes(
    before: Speed | ImageSpeed | None, after: Speed | ImageSpeed | None
) -> dict[str, dict[str, float | bool]]:
    """By `prefill`, `decode` or `images`, how many times as fast the second model is; empty where it was not timed."""
    rates = {
        name: (getattr(before, name), getattr(after, name))
        for name in ("prefill", "decode", "images")
        if hasattr(before, name) and hasattr(after, name)
    }
    return {
        name: {"ratio": new.median / old.median, "told_apart": told_apart(old, new)}
        for name, (old, new) in rates.items()
    }


def weights_and_peak(model: PreTrainedModel, run: Callable[[], object]) -> int:
    """Bytes of the weights of `model`, and the most that the tensors of one `run` take beside them."""
    weights = storages(model)
    with (live := LiveBytes(set(weights))):
        run()
    return sum(weights.values()) + live.peak


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
        self._model = model
        self._prompt = prompt.to(model.device)
        self._new_tokens = new_tokens
        self._prefill: list[float] = []
        self._decode: list[float] = []
        self._cache_bytes = self._peak = 0

    def warm_up(self) -> None:
        """One run that is not timed, of which the memory is counted."""

        def run() -> None:
            decoding, logits = self._read()
            self._cache_bytes = decoding.cache_bytes()
            self._write(decoding, logits)

        self._peak = weights_and_peak(self._model, run)

    def run(self) -> None:
        synchronise(self._model.device)
        begin = time.perf_counter()
        decoding, logits = self._read()
        synchronise(self._model.device)
        middle = time.perf_counter()
        self._write(decoding, logits)
        synchronise(self._model.device)
        end = time.perf_counter()
        self._prefill.append(self._prompt.shape[1] / (middle - begin))
        self._decode.append(self._new_tokens / (end - middle))

    def _read(self) -> tuple[Decoding, torch.Tensor]:
        decoding = Decoding(model=self._model)
        return decoding, decoding.read(self._prompt)

    def _write(self, decoding: Decoding, logits: torch.Tensor) -> None:
        for _ in range(self._new_tokens):
            logits = decoding.read(logits.argmax(-1, keepdim=True))

    def result(self) -> Speed:
        return Speed(
            prefill=Rate.of(self._prefill),
            decode=Rate.of(self._decode),
            prompt_tokens=self._prompt.shape[1],
            new_tokens=self._new_tokens,
            cache_bytes_per_token=self._cache_bytes / self._prompt.shape[1],
            peak_bytes=self._peak,
        )
