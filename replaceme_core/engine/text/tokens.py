"""The token sequences of a job: for the fit, held out for selection, and for the evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import tee
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from replaceme_core.engine.text.counts import SequenceCounts, sequence_counts
from replaceme_core.engine.text.drawing import Piece, Wanted, draw
from replaceme_core.engine.text.packing import TokenSet, beginning_of_text, encode
from replaceme_core.engine.text.sources import documents, is_running_text, is_title
from replaceme_core.errors import InvalidInput
from replaceme_core.request.calibration import MixedSource, errors_of
from replaceme_core.request.resolve import ResolvedCalibration, ResolvedSpec
from replaceme_core.request.spec import Loading


def calibration_tokens(
    spec: ResolvedSpec, tokenizer: PreTrainedTokenizerBase, *, paths: Sequence[Path | None], vocabulary: int
) -> TokenSet:
    """Read, pack and draw the sequences that the resolved `spec` asks for; ids are below `vocabulary`.

    `paths` has one for each source of the mix, as `RunnerRequest.text_paths` gives them. `with_self_generated` adds
    what the model generates. Raises `CalibrationTooSmall` for a text that is too short and `InvalidInput` for one that
    cannot be read.
    """
    calibration = spec.calibration
    _require_whole_model(spec)
    counts = sequence_counts(calibration, measure=spec.evaluation.samples if spec.evaluation.enabled else 0)
    drawn: list[TokenSet] = []
    for number, (source, count, path) in enumerate(zip(calibration.mix, counts, paths, strict=True)):
        if not source.self_generated:
            with errors_of(source):
                drawn.append(_draw(source, count, calibration, tokenizer, path, seed=calibration.seed + number))
            _check_vocabulary(drawn[-1], vocabulary)
    numbers = [number for number, source in enumerate(calibration.mix) if not source.self_generated]
    return _joined(drawn, numbers, calibration)


def _draw(
    source: MixedSource,
    count: SequenceCounts,
    calibration: ResolvedCalibration,
    tokenizer: PreTrainedTokenizerBase,
    path: Path | None,
    *,
    seed: int,
) -> TokenSet:
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


def _check_vocabulary(tokens: TokenSet, vocabulary: int) -> None:
    parts = (tokens.fit, tokens.held_out, tokens.measure)
    highest = max((int(part.max()) for part in parts if part.numel()), default=0)
    if highest >= vocabulary:
        raise InvalidInput(
            f"the tokenizer gives id {highest}, but the model has {vocabulary} embeddings: "
            "tokenizer and model do not belong together",
            field="model",
        )


def _joined(drawn: Sequence[TokenSet], numbers: Sequence[int], calibration: ResolvedCalibration) -> TokenSet:
    """The sequences of all texts: those of the fit in random order, the held-out ones alternating.

    `numbers` are the places of the texts in the mix.
    """

    def sources_of(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.full((len(part),), number) for part, number in zip(parts, numbers, strict=True)])

    fits, held_outs, measures = zip(*((one.fit, one.held_out, one.measure) for one in drawn), strict=True)
    fit_sources, held_out_sources = sources_of(fits), sources_of(held_outs)
    order = torch.arange(len(fit_sources))
    if len(fit_sources.unique()) > 1:  # the sequences of one text are in random order already
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(calibration.seed))
    turns = alternating(held_out_sources)
    return TokenSet(
        fit=torch.cat(fits)[order],
        held_out=torch.cat(held_outs)[turns],
        measure=torch.cat(measures),
        sources=tuple(source.name for source in calibration.mix),
        fit_sources=fit_sources[order],
        held_out_sources=held_out_sources[turns],
        measure_sources=sources_of(measures),
    )


def alternating(sources: torch.Tensor) -> torch.Tensor:
    """An order in which every beginning has each of `sources` (sequences,) about by its share; int64 (sequences,).

    The sequences of one source keep their order.
    """
    places = torch.zeros(len(sources), dtype=torch.float64)
    for source in sources.unique():
        of_it = sources == source
        size = int(of_it.sum())
        places[of_it] = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    by_source = torch.argsort(sources, stable=True)
    return by_source[torch.argsort(places[by_source], stable=True)]


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
    return with_source(tokens, number, fit=fit, held_out=held_out, seed=calibration.seed)


def with_source(tokens: TokenSet, number: int, *, fit: torch.Tensor, held_out: torch.Tensor, seed: int) -> TokenSet:
    """`tokens` with the sequences of the source `number`: fitted ones in random order, held-out ones alternating."""
    fit_sources = torch.cat([tokens.fit_sources, torch.full((len(fit),), number)])
    held_out_sources = torch.cat([tokens.held_out_sources, torch.full((len(held_out),), number)])
    order = torch.randperm(len(fit_sources), generator=torch.Generator().manual_seed(seed))
    held_out_order = alternating(held_out_sources)
    return replace(
        tokens,
        fit=torch.cat([tokens.fit, fit])[order],
        held_out=torch.cat([tokens.held_out, held_out])[held_out_order],
        fit_sources=fit_sources[order],
        held_out_sources=held_out_sources[held_out_order],
    )


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
