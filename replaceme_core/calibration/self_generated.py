"""Sequences that the model writes itself, to calibrate on.

They look like what the model has learned, whatever that was, where one text at hand is of one kind
(docs/decisions/0022-self-generated-text.md).
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.calibration.openings import Openings, openings

TEMPERATURE = 0.8
MOST_LIKELY = 100
MASS = 0.95
"""Each token is drawn from the likeliest ones: at most so many, and no more than make up this probability."""
LOOP, FEWEST = 64, 16
"""A text whose last `LOOP` tokens are fewer than `FEWEST` different ones goes round in circles and is ended; of 147
sequences of WikiText one is, of the documents of a small model every third (docs/decisions/0022)."""
BATCH_SEQUENCES = 64
"""Sequences that are written side by side."""


@torch.inference_mode()
def generate_sequences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    length: int,
    seed: int,
    advance: Callable[[float], None],
) -> torch.Tensor:
    """Token ids (count, length) on the host, full to the end; `advance` is told the part that is written.

    Documents; where the model has a chat template every second sequence holds conversations. Drawn on the host, so that
    the same logits give the same text on every device.
    """
    texts = openings(tokenizer)
    rows = [_Row(texts.of(row)) for row in range(count)]
    ends = _end_tokens(model, tokenizer, texts)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, BATCH_SEQUENCES):
        some = rows[start : start + BATCH_SEQUENCES]
        cache, new = DynamicCache(config=model.config), 0
        while len(some[0].ids) < length:
            # given tokens take the place of drawn ones: rows with prompts of any length go in step, without padding
            if not all(row.given for row in some):
                read = torch.tensor([row.ids[new:] for row in some], device=model.device)
                new = read.shape[1] + new
                logits = model(input_ids=read, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                drawn = _draw(logits, generator=generator)
            else:
                drawn = [0] * len(some)
            for row, token in zip(some, drawn, strict=True):
                row.take(token, ends=ends)
            advance((start + len(some) * len(some[0].ids) / length) / count)
    return torch.tensor([row.ids for row in rows], dtype=torch.long)


class _Row:
    """A sequence as far as it is written. `given`: what comes next whatever the model says."""

    def __init__(self, openings: Iterator[Sequence[int]]) -> None:
        self._openings = openings
        self.ids: list[int] = []
        self._written = 0
        self.given = list(next(openings))

    def take(self, token: int, *, ends: Collection[int]) -> None:
        """The next given token, else the one that was drawn."""
        if self.given:
            self.ids.append(self.given.pop(0))
            return
        self.ids.append(token)
        self._written += 1
        if token in ends or self._loops():
            given = list(next(self._openings))
            self.given = given[1:] if given[0] == token else given  # a template that ends the turn itself
            self._written = 0

    def _loops(self) -> bool:
        """Whether what was drawn since the last given token has come to repeat itself."""
        return self._written >= LOOP and len(set(self.ids[-LOOP:])) < FEWEST


def _draw(logits: torch.Tensor, *, generator: torch.Generator) -> list[int]:
    """A token for each row of `logits` (rows, vocabulary)."""
    values, indices = logits.float().topk(min(MOST_LIKELY, logits.shape[-1]))
    likely = (values / TEMPERATURE).softmax(-1).cpu()
    likely[likely.cumsum(-1) - likely > MASS] = 0  # the likeliest one stays in any case
    places = torch.multinomial(likely, 1, generator=generator)
    return [int(token) for token in indices.cpu().gather(1, places).squeeze(1)]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Openings) -> frozenset[int]:
    """Tokens that end a turn or a text; what opens the next document ends the one before."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    found = [*found, tokenizer.eos_token_id, *texts.document]
    return frozenset(token for token in found if isinstance(token, int))
