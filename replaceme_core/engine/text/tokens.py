"""The token sequences of a job: for the fit, held out for selection, and for the evaluation.

They are full sequences of one length, so that no padding enters the sums: of the texts of the mix and of the model's
own text. Where the request leaves their number open, a short text gives fewer than usual.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.text.documents import Document, documents, is_running_text, is_title
from replaceme_core.engine.text.drawing import (
    Drawn,
    Piece,
    SequenceCounts,
    TokenSet,
    Wanted,
    alternating,
    draw,
    sequence_counts,
    with_source,
)
from replaceme_core.engine.text.limits import render
from replaceme_core.errors import InvalidInput
from replaceme_core.library_errors import library_errors
from replaceme_core.request.calibration import SELF_GENERATED, CalibrationSpec, MixedSource, errors_of
from replaceme_core.request.defaults import HELD_OUT_SHARE
from replaceme_core.request.resolve import ResolvedCalibration, ResolvedSpec, resolve_text
from replaceme_core.request.spec import Loading

FEWEST_SAMPLES = 16
"""Samples that are used without being asked for; a short text gives fewer than the usual number."""
READ_AT_ONCE = 2**20
"""Characters of a document: a tokenizer takes some 300 bytes for each, and a row may have 16 million."""
MEASURING_PART = 8
"""One sequence in eight of a short text is left for the evaluation, whether there is one or not: it must not change
what calibrates."""


def encode(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "auto",
    running_text: bool = False,
) -> Iterator[list[int]]:
    """Token ids of each document. `template`: "auto", "chat" or "plain".

    The end-of-text token follows each, unless they are the paragraphs of one `running_text`. Conversations go through
    the chat template of the tokenizer; where it has none, as in base models, they become plain text.
    """
    has_template = tokenizer.chat_template is not None
    if template == "chat" and not has_template:
        raise InvalidInput(
            "the model's tokenizer has no chat template; use template plain or auto",
            field="calibration.template",
            value=template,
        )
    ends = isinstance(tokenizer.eos_token_id, int) and not running_text
    end = [tokenizer.eos_token_id] if ends else []
    for document in documents:
        if isinstance(document, str):
            text = document
        elif has_template and template != "plain":
            text = render(tokenizer, document)
        else:
            text = "\n\n".join(turn["content"] for turn in document)
        ids: list[int] = []
        with library_errors("the model's tokenizer cannot read the calibration text"):
            for start in range(0, len(text), READ_AT_ONCE):
                part = text[start : start + READ_AT_ONCE]
                ids += tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        yield [*ids, *end]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Full `sequences` (sequences, length), and the number of `tokens` that were read for them."""

    sequences: torch.Tensor
    tokens: int


def pack(encoded: Iterable[list[int]], tokenizer: PreTrainedTokenizerBase, *, length: int, limit: int) -> Packed:
    """At most `limit` full sequences; tokens that do not fill the last one are dropped.

    Each begins with the beginning-of-text token if this tokenizer adds one, as the model saw in training.
    """
    prefix = beginning_of_text(tokenizer)
    body = length - len(prefix)
    rows: list[list[int]] = []
    pending: list[int] = []
    tokens = 0
    for ids in encoded:
        tokens += len(ids)
        pending.extend(ids)
        cut = 0
        while len(pending) - cut >= body and len(rows) < limit:
            rows.append([*prefix, *pending[cut : cut + body]])
            cut += body
        del pending[:cut]
        if len(rows) >= limit:
            break
    return Packed(sequences=torch.tensor(rows, dtype=torch.long).reshape(-1, length), tokens=tokens)


def beginning_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token where this tokenizer puts it before a text, else nothing."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    return [ids[0]] if ids and ids[0] == tokenizer.bos_token_id else []


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens with which a model ends a turn or a text."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*found, tokenizer.eos_token_id] if isinstance(token, int)})


def calibration_tokens(
    spec: ResolvedSpec, tokenizer: PreTrainedTokenizerBase, *, paths: Sequence[Path | None], vocabulary: int
) -> TokenSet:
    """Read, pack and draw the sequences that the resolved `spec` asks for; ids are below `vocabulary`.

    `paths` has one for each source of the mix, `None` for a built-in text. `with_self_generated` adds what the model
    generates. Raises `CalibrationTooSmall` for a text that is too short and `InvalidInput` for one that cannot be read.
    """
    calibration = spec.calibration
    _require_whole_model(spec)
    counts = sequence_counts(calibration, measure=spec.evaluation.samples if spec.evaluation.enabled else 0)
    drawn: dict[int, Drawn] = {}
    for number, (source, count, path) in enumerate(zip(calibration.mix, counts, paths, strict=True)):
        if not source.self_generated:
            with errors_of(source):
                drawn[number] = _draw(source, count, calibration, tokenizer, path, seed=calibration.seed + number)
            parts = (part for part in drawn[number] if part.numel())
            # what the model writes itself begins with the token that ends a text
            check_ids(max(tokenizer.eos_token_id or 0, *(int(part.max()) for part in parts)), vocabulary)
    return _joined(drawn, calibration)


def _draw(
    source: MixedSource,
    count: SequenceCounts,
    calibration: ResolvedCalibration,
    tokenizer: PreTrainedTokenizerBase,
    path: Path | None,
    *,
    seed: int,
) -> Drawn:
    """The sequences of one text."""
    is_running = is_running_text(path)
    texts, again = tee(documents(source, path))
    encoded = encode(again, tokenizer, template=source.template, running_text=is_running)
    pieces = (Piece(ids=ids, is_title=is_title(text)) for text, ids in zip(texts, encoded, strict=True))
    wanted = Wanted(
        count=count,
        length=calibration.max_length,
        prefix=beginning_of_text(tokenizer),
        grouped=is_running,
        called="" if calibration.sources is None else f" {source.name}",
        samples=calibration.samples,
    )
    return draw(pieces, wanted, seed=seed)


def check_ids(highest: int, vocabulary: int) -> None:
    """Raise `InvalidInput` if a tokenizer gives an id as high as that to a model with `vocabulary` embeddings."""
    if highest >= vocabulary:
        raise InvalidInput(
            f"the tokenizer gives id {highest}, but the model has {vocabulary} embeddings: "
            "tokenizer and model do not belong together",
            field="model",
        )


def _joined(drawn: Mapping[int, Drawn], calibration: ResolvedCalibration) -> TokenSet:
    """The sequences of all texts, by their places in the mix: of the fit in random order, held-out ones alternating."""

    def sources_of(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.full((len(part),), number) for part, number in zip(parts, drawn, strict=True)])

    fits, held_outs, measures = zip(*drawn.values(), strict=True)
    fit_sources, held_out_sources = sources_of(fits), sources_of(held_outs)
    order = torch.arange(len(fit_sources))
    if len(fit_sources.unique()) > 1:  # the sequences of one text are in random order already
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(calibration.seed))
    turns = alternating(held_out_sources)
    return TokenSet(
        fit=torch.cat(fits)[order],
        held_out=torch.cat(held_outs)[turns],
        measure=torch.cat(measures),
        sources=calibration.names,
        fit_sources=fit_sources[order],
        held_out_sources=held_out_sources[turns],
        measure_sources=sources_of(measures),
    )


def with_self_generated(
    tokens: TokenSet, calibration: ResolvedCalibration, generate: Callable[[int], torch.Tensor]
) -> TokenSet:
    """`tokens` with sequences of the model's own; `generate` returns as many as it is given (sequences, length)."""
    number = next(number for number, source in enumerate(calibration.mix) if source.self_generated)
    count = sequence_counts(calibration, measure=0)[number]
    if count.fit + count.held_out == 0:  # a share of less than one sequence
        return tokens
    generated = generate(count.fit + count.held_out)
    fit, held_out = generated[: count.fit], generated[count.fit :]
    return with_source(tokens, SELF_GENERATED, fit=fit, held_out=held_out, seed=calibration.seed)


def _require_whole_model(spec: ResolvedSpec) -> None:
    generated = [source for source in spec.calibration.mix if source.self_generated]
    if generated and spec.compute.loading is Loading.BLOCKWISE:
        field = "calibration.self_generated" if spec.calibration.sources is None else generated[0].field
        raise InvalidInput(
            "a model that is loaded block by block would be read from disk for each token that it generates; leave "
            f"{field} out, or set compute.loading to whole",
            field=field,
            value=generated[0].share,
        )


def sized_to_text(
    spec: ResolvedSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    requested: CalibrationSpec,
    paths: Sequence[Path | None],
) -> ResolvedSpec:
    """The resolved `spec`, with as many samples as its texts have, if these are fewer and that was not `requested`.

    `paths` has one for each source of the mix. With fewer than `FEWEST_SAMPLES`, or too few to hold out a sequence of
    each text, it stays as it is, and drawing the samples raises the error. Raises `InvalidInput` for a text that cannot
    be read.
    """
    calibration = spec.calibration
    if requested.samples is not None:
        return spec
    available = [
        _sequences(source, wanted, calibration, tokenizer, path)
        for source, wanted, path in zip(calibration.mix, _wanted(calibration), paths, strict=True)
    ]
    texts = sum(needs > 0 for needs in _wanted(calibration))
    least = max(FEWEST_SAMPLES, HELD_OUT_SHARE * texts)  # each has a held-out one
    while calibration.samples >= least:
        wanted = _wanted(calibration)
        if all(has >= needs for has, needs in zip(available, wanted, strict=True)):
            return spec.model_copy(update={"calibration": calibration})
        possible = (has * calibration.samples // needs for has, needs in zip(available, wanted, strict=True) if needs)
        samples = min(calibration.samples - 1, *possible)
        if samples < least:
            break
        smaller = requested.model_copy(update={"samples": samples, "max_length": calibration.max_length})
        calibration = resolve_text(
            spec.model_copy(update={"calibration": smaller}),
            on_cpu=spec.compute.device == "cpu",
            loading=spec.compute.loading,
        )
    return spec


def _wanted(calibration: ResolvedCalibration) -> list[int]:
    """How many sequences each source of the mix should have; 0 where it is not fitted on, or the model writes it."""
    counts = sequence_counts(calibration, measure=0)
    sizes = [count.fit + count.held_out for count in counts]
    return [
        0 if source.self_generated or source.share == 0 else size + max(1, size // MEASURING_PART)
        for source, size in zip(calibration.mix, sizes, strict=True)
    ]


def _sequences(
    source: MixedSource,
    wanted: int,
    calibration: ResolvedCalibration,
    tokenizer: PreTrainedTokenizerBase,
    path: Path | None,
) -> int:
    """How many sequences the text has; no more than `wanted` are counted."""
    if wanted == 0:
        return 0
    with errors_of(source):
        running_text = is_running_text(path)
        encoded = encode(documents(source, path), tokenizer, template=source.template, running_text=running_text)
        return len(pack(encoded, tokenizer, length=calibration.max_length, limit=wanted).sequences)
