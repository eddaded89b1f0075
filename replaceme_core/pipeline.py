"""Compress a model: the method's own story, from top to bottom (ReplaceMe, arXiv 2505.02819).

resolve    what the specification leaves open is decided by the machine
calibrate  the model is loaded and proved; from here to `solve` the story is the method's (`methods/`)
select     what goes is chosen by what is left after the fit
solve      what stands in for it, in closed form, from all calibration tokens
fold       that disappears into the weights that stay, and the blocks go
save       in the model's own dtype; loaded again and made to speak
evaluate   before and after, in the same run
"""

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from replaceme_core.calibration.tokens import calibration_tokens
from replaceme_core.checkpoint import decide
from replaceme_core.evaluation.measure import Measurement, Subject, measure
from replaceme_core.families.resolve import ResolvedModel, resolve
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.methods.table import METHODS
from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.card import write_card
from replaceme_core.modeling.changes import apply_changes
from replaceme_core.modeling.choose import Candidate
from replaceme_core.modeling.device import make_deterministic, resolve_spec
from replaceme_core.modeling.load import load_model, load_tokenizer, read_outline, stored_dtype
from replaceme_core.modeling.save import complete_or_absent, save_model
from replaceme_core.modeling.surgery import fold, kept_blocks, remove_blocks
from replaceme_core.modeling.verify import verify_saved
from replaceme_core.plan import check_removal
from replaceme_core.progress import Finished, Progress, RunnerRequest, Stage
from replaceme_core.report import write_report
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
        task = Task(blockwise=blockwise, tokens=tokens, spec=spec, remove=remove, clock=clock)
        pruning = decide(request, task, METHODS[spec.method.name])
        removed, candidates = list(pruning.removed), list(pruning.candidates)
        _report_candidates(progress, candidates)

        clock.begin(Stage.FOLD)
        if dtype != own_dtype:  # the map goes into the weights as they are stored, not into a rounded copy
            del model, blockwise, task
            gc.collect()
            model = load_model(source, dtype=own_dtype, device=device)
        resolved = resolve(model)
        structure = resolved.structure
        _operate(resolved, pruning)

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


def _operate(resolved: ResolvedModel, pruning: Pruning) -> None:
    for one in pruning.folds:
        if bool(one.delta.any()):
            fold(resolved, one)
    apply_changes(resolved, pruning.changes)
    remove_blocks(resolved, pruning.removed)


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
