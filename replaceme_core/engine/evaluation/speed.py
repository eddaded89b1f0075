"""How fast models are, and how much memory the tensors of a piece of work take at once, on any device.

Allocators keep what was freed, so the memory of the process tells little of a single model; here every tensor that an
operation makes is counted until it is freed.
"""

import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from replaceme_core.engine.model.decoding import Decoding
from replaceme_core.engine.model.device import synchronise

Found = TypeVar("Found")


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
    """Of `models`, each on the beginning of its sequence; all have one length, of 2 tokens or more."""
    length = len(sequences[0])
    read = min(PROMPT_TOKENS, max(length // 2, length - NEW_TOKENS))
    new_tokens = min(NEW_TOKENS, length - read)
    runs = [
        partial(_run, model, sequence[:read].unsqueeze(0).to(model.device), new_tokens=new_tokens)
        for model, sequence in zip(models, sequences, strict=True)
    ]
    peaks = [weights_and_peak(model, run) for model, run in zip(models, runs, strict=True)]
    found = []
    for rows, peak in zip(in_turn(runs), peaks, strict=True):
        prefill, decode, cache_bytes = zip(*rows, strict=True)
        found.append(
            Speed(
                prefill=Rate.of(prefill),
                decode=Rate.of(decode),
                prompt_tokens=read,
                new_tokens=new_tokens,
                cache_bytes_per_token=cache_bytes[0] / read,
                peak_bytes=peak,
            )
        )
    return found


def _run(model: PreTrainedModel, prompt: torch.Tensor, *, new_tokens: int) -> tuple[float, float, int]:
    """How many tokens a second `model` reads and writes, and the bytes of its cache in between."""
    synchronise(model.device)
    begin = time.perf_counter()
    decoding = Decoding(model=model)
    read = decoding.read(prompt)
    synchronise(model.device)
    reading = time.perf_counter() - begin
    cache_bytes = decoding.cache_bytes()
    begin, logits = time.perf_counter(), read  # which counts as memory all along
    for _ in range(new_tokens):
        logits = decoding.read(logits.argmax(-1, keepdim=True))
    synchronise(model.device)
    writing = time.perf_counter() - begin
    return prompt.shape[1] / reading, new_tokens / writing, cache_bytes


def in_turn(runs: Sequence[Callable[[], Found]]) -> list[list[Found]]:
    """What each of `runs` returns in `RUNS` rounds, or in fewer where these take long; one of each in a round."""
    found: list[list[Found]] = [[] for _ in runs]
    began = time.perf_counter()
    for number in range(RUNS):
        if number >= FEWEST_RUNS and time.perf_counter() - began > SECONDS:
            break
        for run, own in zip(runs, found, strict=True):
            own.append(run())
    return found
