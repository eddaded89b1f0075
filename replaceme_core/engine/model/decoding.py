"""Read tokens one step after another, whatever cache a model keeps: keys and values, or the states of a recurrence."""

import inspect
from dataclasses import dataclass, field

import torch
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedModel

from replaceme_core.engine.model.block_runner import without_side_outputs

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""What models call it, as an argument and in their output; the newest name first."""


@dataclass(kw_only=True)
class Decoding:
    """Sequences that `model` reads step by step, with the positions and by default the `cache` that `generate` takes.

    Without them, some models count from 0 in each step, or keep nothing. Those with a class of their own make it.
    """

    model: PreTrainedModel
    cache: object | None = None
    _length: int = field(default=0, init=False)
    """Tokens of each sequence that have been read."""
    _options: dict[str, object] = field(init=False)
    _name: str = field(init=False)
    _takes_positions: bool = field(init=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.model.forward).parameters
        self._options = dict(without_side_outputs(self.model))
        if "logits_to_keep" in parameters:
            self._options["logits_to_keep"] = 1
        self._name = next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[0])
        self._takes_positions = "position_ids" in parameters
        if self.cache is None:
            self.cache = DynamicCache(config=self.model.config)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits (sequences, vocabulary) after `tokens` (sequences, positions), which come after those before."""
        try:
            logits = self._run(tokens)
        except ValueError:  # some models take a cache of their own class only, and refuse this one at once
            if self._length:
                raise
            self.cache = None
            logits = self._run(tokens)
        self._length += tokens.shape[1]
        return logits

    def _run(self, tokens: torch.Tensor) -> torch.Tensor:
        given = {} if self.cache is None else {self._name: self.cache}
        if self._takes_positions:
            positions = torch.arange(self._length, self._length + tokens.shape[1], device=tokens.device)
            given["position_ids"] = positions.expand(tokens.shape)
        output = self.model(input_ids=tokens, use_cache=True, **given, **self._options)
        made = (getattr(output, name, None) for name in CACHE_NAMES)
        self.cache = next((one for one in made if one is not None), self.cache)
        logits: torch.Tensor = output.logits
        return logits[:, -1]

    def cache_bytes(self) -> int:
        """The size of all tensors of at least one dimension in the cache."""
        layers = getattr(self.cache, "layers", [self.cache])
        values = tree_leaves([vars(layer) for layer in layers])
        return sum(each.nbytes for each in values if isinstance(each, torch.Tensor) and each.dim())
