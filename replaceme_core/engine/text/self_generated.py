"""Calibration sequences that the model generates itself.

They resemble all that the model has learned, where a given text is of one kind
(docs/explanation/text-and-memory.md#own-text). After the start of a text, a model generates documents of all the
kinds it has learned. A model that was tuned to follow instructions, after the start of the user's turn, generates a
question and answers it (Magpie, arXiv 2406.08464).
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from replaceme_core.engine.model.decoding import Decoding
from replaceme_core.engine.text.limits import render
from replaceme_core.engine.text.tokens import beginning_of_text, end_tokens
from replaceme_core.errors import NumericalFailure
from replaceme_core.request.defaults import BATCH_TEXTS, TEXT_TOKENS

TEMPERATURE = 0.8
MOST_LIKELY = 100
MASS = 0.95
"""Sampling: the temperature, the number of likeliest tokens (top-k), and their share of the probability (top-p). At a
temperature of 1 a small model generates much nonsense."""
LOOP_TOKENS = 64
FEWEST_DIFFERENT = 16
"""A text ends where fewer than 16 of its last 64 tokens are different, as in 1 of 147 sequences of WikiText and in
every third document of a small model. Else a fifth of all positions are repetitions."""
CACHE_STEP = 32
"""Positions by which the cache grows: attention reads all of it, the empty positions too."""

_PLACEHOLDER = "@@replaceme@@"
"""In place of the user's message while the chat template is split."""
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>")
"""Tokens between documents, for a tokenizer that adds none at the start of a text. A model that was tuned to follow
instructions still has the token, but its `bos_token` and `eos_token` are those of turns."""


@dataclass(frozen=True, kw_only=True)
class Openings:
    """Token ids that are given to the model, one or more.

    `document` begins a document; `turns` begin the first turn of a conversation, the user's, and the one after it.
    There are none where the tokenizer has no usable chat template.
    """

    document: tuple[int, ...]
    turns: tuple[tuple[int, ...], ...] = ()

    def of(self, row: int) -> Iterator[Sequence[int]]:
        """Without end, the tokens to give to a row at its start and after each end token.

        With a chat template, every second row holds conversations; all others hold documents.
        """
        return itertools.cycle(self.turns if self.turns and row % 2 else (self.document,))


def openings(tokenizer: PreTrainedTokenizerBase) -> Openings:
    """The openings of this tokenizer and its chat template; a template that cannot be split counts as none."""
    document = _start_of_text(tokenizer)
    if tokenizer.chat_template is None:
        return Openings(document=document)
    asked = render(tokenizer, [{"role": "user", "content": _PLACEHOLDER}], asks=True)
    user, found, assistant = asked.partition(_PLACEHOLDER)
    turns = _ids(tokenizer, user), _ids(tokenizer, assistant)
    # a tokenizer may drop the newlines of which a plain template consists
    return Openings(document=document, turns=turns if found and all(turns) else ())


def _start_of_text(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """One token, if possible: the one that the tokenizer puts before a text, else the one that separates texts."""
    known = tokenizer.get_added_vocab()
    separators = [known[one] for one in _SEPARATORS if one in known]
    for token in [*beginning_of_text(tokenizer), *separators, tokenizer.bos_token_id, tokenizer.eos_token_id]:
        if isinstance(token, int):
            return (token,)
    return _ids(tokenizer, "\n") or (0,)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


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
    """Token ids (count, length) on the host, full to the end; `advance` gets the part that is generated.

    A sequence consists of texts of about `TEXT_TOKENS` tokens, which are generated in one batch. With a chat template
    every second text holds conversations; all others hold documents. Tokens are drawn on the host, so that the same
    logits give the same text on every device.
    """
    each = max(1, round(length / TEXT_TOKENS))
    rows_wanted, text_length = count * each, math.ceil(length / each)
    texts = openings(tokenizer)
    rows = [_Row(texts.of(row)) for row in range(rows_wanted)]
    ends = {*end_tokens(model, tokenizer), *texts.document}  # the start of a document ends the one before it
    generator = torch.Generator().manual_seed(seed)
    # batches of one size: a small one costs as much time
    at_once = math.ceil(rows_wanted / math.ceil(rows_wanted / BATCH_TEXTS))
    for start in range(0, rows_wanted, at_once):
        some = rows[start : start + at_once]
        decoding, new = _GrowingCache(model, length=text_length), 0
        while len(some[0].ids) < text_length:
            # Given tokens replace drawn ones, so that rows with openings of any length need no padding.
            drawn = [0] * len(some)
            if not all(row.given for row in some):
                read = torch.tensor([row.ids[new:] for row in some], device=model.device)
                new += read.shape[1]
                drawn = _draw(decoding.read(read, positions=new), generator=generator)
            for row, token in zip(some, drawn, strict=True):
                row.append(token, ends=ends)
            advance((start + len(some) * len(some[0].ids) / text_length) / rows_wanted)
    ids = torch.tensor([row.ids for row in rows], dtype=torch.long)
    return ids.reshape(count, -1)[:, :length].clone()


class _GrowingCache:
    """A static cache for `model` that grows up to `length` positions; of models with other caches, their own.

    A static cache has no gaps between rows and no copy for each token, but attention reads all its positions. Only one
    of keys and values alone can grow: not the states of a recurrence, nor the keys by which sparse attention chooses.
    """

    def __init__(self, model: PreTrainedModel, *, length: int) -> None:
        cache = StaticCache(config=model.config, max_cache_len=length)
        plain = (StaticLayer, StaticSlidingWindowLayer)
        growing = [layer for layer in cache.layers if isinstance(layer, StaticLayer) and type(layer) in plain]
        grows = len(growing) == len(cache.layers)
        self._decoding = Decoding(model=model, cache=cache if grows else None)
        self._layers = [(layer, layer.max_cache_len) for layer in growing] if grows else []
        self._size = 0

    def read(self, tokens: torch.Tensor, *, positions: int) -> torch.Tensor:
        """The logits (rows, vocabulary) after `tokens` (rows, new), with which there are `positions` in all."""
        self._hold(positions)
        return self._decoding.read(tokens)

    def _hold(self, positions: int) -> None:
        """Make room for `positions`; a layer with a sliding window never has more than its window."""
        if positions <= self._size:
            return
        self._size = math.ceil(positions / CACHE_STEP) * CACHE_STEP
        for layer, most in self._layers:
            layer.max_cache_len = min(most, self._size)
            if layer.keys is not None and layer.values is not None:
                more = (0, 0, 0, layer.max_cache_len - layer.keys.shape[2])
                layer.keys, layer.values = pad(layer.keys, more), pad(layer.values, more)


class _Row:
    """A sequence that is being generated. `given` are tokens of an opening that come next, in place of drawn ones."""

    def __init__(self, openings: Iterator[Sequence[int]]) -> None:
        self._openings = openings
        self.ids: list[int] = []
        self._drawn = 0
        self.given = list(next(openings))

    def append(self, token: int, *, ends: Collection[int]) -> None:
        """Append the next given token, or else the drawn `token`; one of `ends` is followed by the next opening."""
        if self.given:
            self.ids.append(self.given.pop(0))
            return
        self.ids.append(token)
        self._drawn += 1
        if token in ends or self._repeats():
            given = list(next(self._openings))
            self.given = given[1:] if given[0] == token else given  # the template begins with the end of the turn
            self._drawn = 0

    def _repeats(self) -> bool:
        """Whether the tokens drawn since the last opening repeat themselves."""
        return self._drawn >= LOOP_TOKENS and len(set(self.ids[-LOOP_TOKENS:])) < FEWEST_DIFFERENT


def _draw(logits: torch.Tensor, *, generator: torch.Generator) -> list[int]:
    """Draw a token for each row of `logits` (rows, vocabulary)."""
    values, indices = logits.float().topk(min(MOST_LIKELY, logits.shape[-1]))
    likely = (values / TEMPERATURE).softmax(-1).cpu()
    if likely.isnan().any():
        dtype = str(logits.dtype).removeprefix("torch.")
        raise NumericalFailure(
            f"the source model cannot write text in {dtype}: its logits overflow or are not numbers; compute in "
            "float32 (compute.dtype), or leave its own text out (calibration.self_generated: 0)"
        )
    likely[likely.cumsum(-1) - likely > MASS] = 0  # the likeliest token always stays
    places = torch.multinomial(likely, 1, generator=generator)
    return [int(token) for token in indices.cpu().gather(1, places).squeeze(1)]
