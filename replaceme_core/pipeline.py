"""Compress a model: the method's own story, from top to bottom (ReplaceMe, arXiv 2505.02819).

resolve    what the specification leaves open is decided by the machine
calibrate  the model is loaded and proved; from here to `solve` the story is the method's (`methods/`)
select     what goes is chosen by what is left after the fit
solve      what stands in for it, in closed form, from all calibration tokens
fold       that disappears into the weights that stay, and the blocks go
save       in the model's own dtype; loaded again and made to speak
evaluate   before and after, in the same run
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from replaceme_core.activations.cached_activations import find_cached_activations, scratch_store
from replaceme_core.activations.capture import Activations
from replaceme_core.activations.record import CaptureRecord
from replaceme_core.activations.spill_to_disk import SpillingStore
from replaceme_core.activations.tensor_store import activation_bytes
from replaceme_core.activations.window_sums import capture_windows
from replaceme_core.admission.plan import check_removal
from replaceme_core.calibration.packing import TokenSet
from replaceme_core.calibration.tokens import calibration_tokens, with_self_generated
from replaceme_core.evaluation.measure import Measurement, Subject, measure
from replaceme_core.families.resolve import ResolvedModel, resolve
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.methods.table import METHODS
from replaceme_core.models.allocator import release_memory
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.models.device import make_deterministic, resolve_spec
from replaceme_core.models.lazy_model import open_model
from replaceme_core.models.load import load_config, load_tokenizer, read_outline, stored_weights
from replaceme_core.models.quantized import open_for_capture
from replaceme_core.models.save import complete_or_absent, save_blockwise, save_model
from replaceme_core.models.surgery import fold, kept_blocks, remove_blocks, scale_final_norm
from replaceme_core.models.verify import verify_saved
from replaceme_core.models.weight_changes import apply_changes
from replaceme_core.numerics.structure import MapStructure
from replaceme_core.results.card import write_card
from replaceme_core.results.checkpoint import decide
from replaceme_core.results.report import write_report
from replaceme_core.results.stage_clock import StageClock, resident_bytes
from replaceme_core.runner.eta import writing_part
from replaceme_core.runner.messages import Exchange, Finished, Progress, RunnerRequest, Stage
from replaceme_core.selection.choose import Candidate
from replaceme_core.sharding.sharded_pass import ShardedPass, resolve_shards
from replaceme_core.spec import CompressionSpec, Loading

PROOF_TOKENS = 64
PROMPT_TOKENS = 32


@torch.inference_mode()
def compress(request: RunnerRequest, progress: Progress, exchange: Exchange | None = None) -> Finished:
    """Carry out `request`; its output directory is created last, complete. Through `exchange` others may take shards.

    Raises the errors of `replaceme_core.errors`; nothing is left of a run that failed.
    """
    imported_bytes = resident_bytes()
    source = Path(request.model_directory)
    outline = read_outline(source)
    remove = check_removal(request.spec, outline)
    stored = stored_weights(source)
    spec = resolve_spec(request.spec, weights=stored.values, needs_accelerator=request.needs_accelerator)
    spec = resolve_shards(spec, request)
    loading = spec.compute.loading
    dtype = make_deterministic(spec.compute)
    assert spec.compute.device is not None
    device = spec.compute.device
    clock = StageClock(progress=progress, device=torch.device(device))
    progress.resolved(spec)
    # less than it will be: what is outside the blocks stays whole
    least = stored.values * stored.dtype.itemsize * (outline.blocks - remove) // outline.blocks
    with complete_or_absent(Path(request.output_directory), least=least) as output:
        clock.begin(Stage.CALIBRATE)
        path = Path(request.calibration_path) if request.calibration_path else None
        vocabulary = load_config(source).vocab_size
        tokenizer = load_tokenizer(source)
        tokens = calibration_tokens(spec, tokenizer, path=path, vocabulary=vocabulary)
        with clock.loading():
            model = open_for_capture(source, dtype=dtype, compute=spec.compute)
        writing = writing_part(spec)
        if writing > 0:
            advance = partial(_advance, progress, 0.0, writing)
            tokens = with_self_generated(tokens, spec.calibration, model, tokenizer, advance=advance)
        sharing = ShardedPass(
            spec=spec,
            directory=None if request.shard_directory is None else Path(request.shard_directory),
            exchange=exchange,
        )
        pruning, activations = _prune(
            model, request=request, spec=spec, tokens=tokens, remove=remove, clock=clock, sharing=sharing
        )
        removed, candidates = list(pruning.removed), list(pruning.candidates)
        _report_candidates(progress, candidates)

        clock.begin(Stage.FOLD)
        if dtype != stored.dtype or loading is Loading.BLOCKWISE or spec.compute.quantization is not None:
            # the map goes into the weights as they are stored, not into a rounded copy
            del model
            release_memory()
            with clock.loading():
                model = open_model(source, dtype=stored.dtype, device=device, loading=loading)
        resolved = resolve(model)
        asked = spec.method.structure
        structure = resolved.structure if asked is None else MapStructure(asked)
        scale_final_norm(resolved, pruning.final_scale)
        if loading is Loading.BLOCKWISE:
            clock.begin(Stage.SAVE)
            change = partial(_change_block, pruning=pruning)
            save_blockwise(model, output, source=source, removed=removed, change=change)
        else:
            for block in range(outline.blocks):
                _change_block(resolved, block, pruning=pruning)
            remove_blocks(resolved, removed)
            clock.begin(Stage.SAVE)
            save_model(model, output, source=source)
        kept = kept_blocks(outline.blocks, removed)
        del model, resolved
        release_memory()
        prompt = tokens.fit[0, :PROMPT_TOKENS]
        difference = verify_saved(
            output,
            dtype=stored.dtype,
            blocks=len(kept),
            prompt=prompt,
            device=device,
            loading=loading,
            reading=clock.loading,
        )
        progress.metric("cache_difference", difference, "ratio")

        before = after = None
        if spec.evaluation.enabled:
            clock.begin(Stage.EVALUATE)
            with clock.loading():
                subjects = [
                    Subject(
                        model=open_model(directory, dtype=dtype, device=device, loading=loading), directory=directory
                    )
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
            chosen_method=pruning.method,
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
            activations=activations,
            loading_seconds=clock.loading_seconds,
            imported_bytes=imported_bytes,
            chosen_method=pruning.method,
        )
    return Finished(removed_blocks=removed, kept_blocks=kept, report=report)


def _prune(
    model: PreTrainedModel,
    *,
    request: RunnerRequest,
    spec: CompressionSpec,
    tokens: TokenSet,
    remove: int,
    clock: StageClock,
    sharing: ShardedPass,
) -> tuple[Pruning, CaptureRecord]:
    """What the method says about the live `model`, and what it took to learn it."""
    progress, batch_size = clock.progress, spec.compute.batch_size
    assert batch_size is not None, "the specification is not resolved"
    block_runner = BlockRunner(resolved=resolve(model))
    size = activation_bytes(block_runner, tokens=tokens.fit.numel() + tokens.held_out.numel())
    by_block, place = spec.compute.loading is Loading.BLOCKWISE, Path(request.output_directory)
    shards = spec.compute.shards or 1
    with ExitStack() as stack:
        cached = None
        if shards == 1:  # else no worker sees all streams
            cached = stack.enter_context(find_cached_activations(request, spec=spec, tokens=tokens, size=size))
        activations = Activations(
            block_runner=block_runner,
            fit=tokens.fit,
            held_out=tokens.held_out,
            batch_size=batch_size,
            advance=partial(_advance, progress, writing_part(spec), 1.0),
            cached=cached,
            always_store=by_block,
            make_store=partial(scratch_store, stack, beside=place, size=size, memory=not by_block),
            make_held_out_store=lambda: stack.enter_context(SpillingStore(beside=place)),
            run_windows=capture_windows if shards == 1 else sharing,
            in_shards=shards > 1,
        )
        error = activations.prove(PROOF_TOKENS)
        progress.metric("residual_check_error", error, "ratio")
        task = Task(
            block_runner=block_runner, tokens=tokens, activations=activations, spec=spec, remove=remove, clock=clock
        )
        pruning = decide(request, task, METHODS[spec.method.name])
        record = activations.record()
    if shards > 1:
        progress.metric("shards", shards, "shards")
    for name, value, unit in record.metrics():
        progress.metric(name, value, unit)
    return pruning, record


def _advance(progress: Progress, start: float, end: float, fraction: float) -> None:
    """A part of the present stage, from `start` to `end` of it, is done by `fraction`."""
    progress.advance(start + (end - start) * fraction)


def _change_block(resolved: ResolvedModel, block: int, *, pruning: Pruning) -> None:
    """Fold the maps of `block` and add its changes, in place."""
    for one in pruning.folds:
        if one.cut.anchor == block and bool(one.delta.any()):
            fold(resolved, one)
    apply_changes(resolved, [one for one in pruning.changes if one.block == block])


def _report_measurement(progress: Progress, name: str, measured: Measurement) -> None:
    progress.metric(f"{name}.perplexity", measured.perplexity, "ratio")
    progress.metric(f"{name}.parameters", measured.parameters, "parameters")
    progress.metric(f"{name}.bytes", measured.bytes, "bytes")
    progress.metric(f"{name}.tokens_per_second", measured.tokens_per_second, "tokens/s")
    progress.metric(f"{name}.blocks", measured.blocks, "blocks")


def _report_candidates(progress: Progress, candidates: Sequence[Candidate]) -> None:
    for row in candidates:
        name, anchor = str(row.cut), row.cut.anchor
        if row.step is not None:
            name += f" in step {row.step}"
        if row.group is not None:
            name += f" in group {row.group}"
        measured = (
            ("distance", row.distance, "half turns"),
            ("influence", row.influence, "ratio"),
            ("residual", row.residual, "ratio"),
            ("tokens", row.tokens, "tokens"),
            ("held_out_loss", row.held_out_loss, "nats"),
        )
        for quantity, value, unit in measured:
            if value is not None:
                progress.metric(quantity, value, unit, block=anchor, candidate=name)
        if row.chosen:
            progress.metric("chosen", 1.0, "flag", block=anchor, candidate=name)
