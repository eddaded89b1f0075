"""Compress a model: the method's own story, from top to bottom (ReplaceMe, arXiv 2505.02819).

resolve    what the specification leaves open is decided by the machine
calibrate  the model is loaded and proved, and one pass over the tokens gives every candidate's statistics
select     the cut is chosen by what is left after the fit
solve      its map, in closed form, from all calibration tokens
fold       the map disappears into the projection before the cut, and the blocks go
save       in the model's own dtype; loaded again and made to speak
evaluate   before and after, in the same run
"""

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from replaceme_core.calibration.packing import TokenSet
from replaceme_core.calibration.tokens import calibration_tokens
from replaceme_core.evaluation.measure import Measurement, Subject, measure
from replaceme_core.families.resolve import ResolvedModel, resolve
from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.capture import Cut, FittedCut, capture_next_cut, capture_windows, windows
from replaceme_core.modeling.card import write_card
from replaceme_core.modeling.choose import Candidate, choose_by_distance, choose_by_loss, fit_map, plain
from replaceme_core.modeling.device import make_deterministic, resolve_spec
from replaceme_core.modeling.load import load_model, load_tokenizer, read_outline, stored_dtype
from replaceme_core.modeling.replay import dense_loss
from replaceme_core.modeling.save import complete_or_absent, save_model
from replaceme_core.modeling.surgery import fold, kept_blocks, remove_blocks
from replaceme_core.modeling.verify import verify_saved
from replaceme_core.numerics.solve import check_rank
from replaceme_core.plan import check_removal
from replaceme_core.progress import Finished, Progress, RunnerRequest, Stage
from replaceme_core.report import write_report
from replaceme_core.spec import CompressionSpec, Method
from replaceme_core.stages import StageClock, resident_bytes

PROOF_TOKENS = 64
PROMPT_TOKENS = 32


@torch.inference_mode()
def compress(request: RunnerRequest, progress: Progress) -> Finished:
    """Carry out `request`; its output directory is created last, complete.

    Raises the errors of `replaceme_core.errors`; nothing is left of a run that failed.
    """
    imported_bytes = resident_bytes()
    source = Path(request.model_directory)
    outline = read_outline(source)
    remove = check_removal(request.spec, outline)
    spec = resolve_spec(request.spec)
    dtype = make_deterministic(spec.compute)
    assert spec.compute.device is not None
    device = spec.compute.device
    clock = StageClock(progress=progress, device=torch.device(device))
    progress.resolved(spec)
    with complete_or_absent(Path(request.output_directory)) as output:
        clock.begin(Stage.CALIBRATE)
        own_dtype = stored_dtype(source)
        tokenizer = load_tokenizer(source)
        path = Path(request.calibration_path) if request.calibration_path else None
        model = load_model(source, dtype=dtype, device=device)
        tokens = calibration_tokens(spec, tokenizer, path=path, vocabulary=model.config.vocab_size)
        blockwise = BlockwiseModel(resolved=resolve(model))
        error = blockwise.prove(tokens.fit[:1, :PROOF_TOKENS].to(device))
        progress.metric("residual_check_error", error, "ratio")
        if spec.drop is None:
            fitted, candidates = _choose_window(blockwise, spec, tokens, length=remove, clock=clock)
        else:
            fitted, candidates = _fit_named(blockwise, spec, tokens, clock=clock)
        _report_candidates(progress, candidates)

        clock.begin(Stage.FOLD)
        if dtype != own_dtype:  # the map goes into the weights as they are stored, not into a rounded copy
            del model, blockwise
            gc.collect()
            model = load_model(source, dtype=own_dtype, device=device)
        resolved = resolve(model)
        structure = resolved.structure
        removed = sorted(block for one in fitted for block in one.cut.blocks)
        _operate(resolved, fitted, removed)

        clock.begin(Stage.SAVE)
        save_model(model, output, source=source)
        kept = kept_blocks(outline.blocks, removed)
        del model, resolved
        gc.collect()
        prompt = tokens.fit[0, :PROMPT_TOKENS]
        difference = verify_saved(output, dtype=own_dtype, blocks=len(kept), prompt=prompt, device=device)
        progress.metric("cache_difference", difference, "ratio")

        before = after = None
        if spec.evaluation.enabled:
            clock.begin(Stage.EVALUATE)
            subjects = [
                Subject(model=load_model(directory, dtype=dtype, device=device), directory=directory)
                for directory in (source, output)
            ]
            before, after = measure(subjects, tokens.measure, advance=progress.advance)
            _report_measurement(progress, "before", before)
            _report_measurement(progress, "after", after)
        clock.end()
        write_card(
            output,
            spec=spec,
            structure=structure,
            removed=removed,
            kept=kept,
            candidates=candidates,
            before=before,
            after=after,
        )
        report = write_report(
            output,
            spec=spec,
            job_id=request.job_id,
            removed=removed,
            kept=kept,
            candidates=candidates,
            stages=clock.records,
            before=before,
            after=after,
            imported_bytes=imported_bytes,
        )
    return Finished(removed_blocks=removed, kept_blocks=kept, report=report)


def _choose_window(
    blockwise: BlockwiseModel, spec: CompressionSpec, tokens: TokenSet, *, length: int, clock: StageClock
) -> tuple[list[FittedCut], list[Candidate]]:
    """One window of `length` blocks, chosen among all; with its map."""
    progress = clock.progress
    assert spec.compute.batch_size is not None
    if spec.method.name != Method.DROP:
        _check_rank(blockwise.resolved, tokens)
    statistics, streams = capture_windows(
        blockwise,
        windows(len(blockwise.blocks), length),
        fit=tokens.fit,
        held_out=tokens.held_out,
        batch_size=spec.compute.batch_size,
        advance=progress.advance,
    )
    progress.metric("tokens", tokens.fit.numel() + tokens.held_out.numel(), "tokens")
    progress.metric("sink_tokens", max(one.sinks for one in statistics), "tokens")

    clock.begin(Stage.SELECT)
    progress.metric("dense_held_out_loss", dense_loss(blockwise, streams), "nats")
    if spec.method.name == Method.DROP:
        candidates = choose_by_distance(blockwise, statistics, streams, advance=progress.advance)
    else:
        candidates = choose_by_loss(
            blockwise,
            statistics,
            streams,
            ridge=spec.method.ridge,
            replays=spec.method.replays,
            advance=progress.advance,
        )
    chosen = next(candidate for candidate in candidates if candidate.chosen)
    winner = next(one for one in statistics if one.cut == chosen.cut)

    clock.begin(Stage.SOLVE)
    if spec.method.name == Method.DROP:
        return [FittedCut(cut=chosen.cut, delta=plain(winner))], candidates
    _, _, delta = fit_map(winner, ridge=chosen.ridge)
    return [FittedCut(cut=chosen.cut, delta=delta)], candidates


def _fit_named(
    blockwise: BlockwiseModel, spec: CompressionSpec, tokens: TokenSet, *, clock: StageClock
) -> tuple[list[FittedCut], list[Candidate]]:
    """The blocks that `spec.drop` names, as runs; their maps are fitted in order, each on the prefix pruned so far."""
    assert spec.drop is not None and spec.compute.batch_size is not None
    cuts = _runs(spec.drop)
    done: list[FittedCut] = []
    candidates: list[Candidate] = []
    if spec.method.name != Method.DROP:
        _check_rank(blockwise.resolved, tokens)
    for index, cut in enumerate(cuts):
        statistics = capture_next_cut(
            blockwise,
            cut,
            done=done,
            fit=tokens.fit,
            held_out=tokens.held_out,
            batch_size=spec.compute.batch_size,
            advance=clock.progress.advance,
        )
        if index == 0:
            clock.begin(Stage.SOLVE)  # the passes of further cuts need the maps before them
        if spec.method.name == Method.DROP:
            ridge, delta = None, plain(statistics)
            residual = statistics.held_out.residual(delta)
        else:
            ridge, residual, delta = fit_map(statistics, ridge=spec.method.ridge)
        done.append(FittedCut(cut=cut, delta=delta))
        candidates.append(
            Candidate(
                start=cut.start,
                end=cut.end,
                distance=statistics.angle.value,
                residual=residual,
                ridge=ridge,
                chosen=True,
            )
        )
    return done, candidates


def _check_rank(resolved: ResolvedModel, tokens: TokenSet) -> None:
    width = resolved.model.config.hidden_size
    check_rank(tokens=tokens.fit.numel(), width=width, structure=resolved.structure)


def _runs(drop: Sequence[int]) -> list[Cut]:
    """Neighbouring blocks together: `(3, 12, 13)` is the cuts 3-3 and 12-13."""
    cuts: list[Cut] = []
    for block in drop:
        if cuts and cuts[-1].end == block - 1:
            cuts[-1] = Cut(start=cuts[-1].start, end=block)
        else:
            cuts.append(Cut(start=block, end=block))
    return cuts


def _operate(resolved: ResolvedModel, fitted: Sequence[FittedCut], removed: Sequence[int]) -> None:
    for one in fitted:
        if bool(one.delta.any()):
            fold(resolved, one)
    remove_blocks(resolved, removed)


def _report_measurement(progress: Progress, name: str, measured: Measurement) -> None:
    progress.metric(f"{name}.perplexity", measured.perplexity, "ratio")
    progress.metric(f"{name}.parameters", measured.parameters, "parameters")
    progress.metric(f"{name}.bytes", measured.bytes, "bytes")
    progress.metric(f"{name}.tokens_per_second", measured.tokens_per_second, "tokens/s")
    progress.metric(f"{name}.blocks", measured.blocks, "blocks")


def _report_candidates(progress: Progress, candidates: Sequence[Candidate]) -> None:
    for row in candidates:
        name, keeper = str(row.cut), row.cut.keeper
        progress.metric("distance", row.distance, "half turns", block=keeper, candidate=name)
        progress.metric("residual", row.residual, "ratio", block=keeper, candidate=name)
        if row.held_out_loss is not None:
            progress.metric("held_out_loss", row.held_out_loss, "nats", block=keeper, candidate=name)
        if row.chosen:
            progress.metric("chosen", 1.0, "flag", block=keeper, candidate=name)
