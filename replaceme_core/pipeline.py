"""Compress a model: the method's own story, from top to bottom (ReplaceMe, arXiv 2505.02819).

resolve    the machine decides what the specification leaves open
calibrate  the model is loaded and checked; its activations on the calibration tokens are captured
select     the blocks to remove are chosen by the residual and the loss after the fit
solve      what compensates for them is solved in closed form, from all calibration tokens
fold       the solution is folded into the weights that stay, and the blocks are removed
save       in the model's own dtype; loaded again and checked
evaluate   before and after, in the same run

What a method does in `calibrate`, `select` and `solve` is in `methods/`. Stages begin here and nowhere else.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.activations.cached_activations import find_cached_activations, scratch_store
from replaceme_core.activations.capture import Activations
from replaceme_core.activations.spill_to_disk import SpillingStore
from replaceme_core.activations.tensor_store import activation_bytes
from replaceme_core.activations.window_sums import capture_windows
from replaceme_core.admission.model_directory import read_outline
from replaceme_core.admission.pattern import Allows, pattern_rule
from replaceme_core.admission.removal import check_removal
from replaceme_core.calibration.packing import TokenSet
from replaceme_core.calibration.tokens import calibration_tokens, with_self_generated
from replaceme_core.evaluation.compare import Comparison, compare
from replaceme_core.evaluation.measure import open_pair
from replaceme_core.evaluation.tasks import LoadedTasks, tasks_of
from replaceme_core.families.patterns import irregular_lists
from replaceme_core.families.resolve import resolve
from replaceme_core.library_errors import library_errors
from replaceme_core.method_traits import Method
from replaceme_core.methods.change_block import change_block
from replaceme_core.methods.protocol import Calibrated, Task, find_method
from replaceme_core.models.allocator import release_memory
from replaceme_core.models.block_runner import BlockRunner
from replaceme_core.models.device import make_deterministic, resolve_spec
from replaceme_core.models.lazy_model import open_model
from replaceme_core.models.load import StoredWeights, check_positions, load_config, load_tokenizer, stored_weights
from replaceme_core.models.quantized import open_for_capture
from replaceme_core.models.save import complete_or_absent, save_block_by_block, save_model
from replaceme_core.models.surgery import kept_blocks, remove_blocks, scale_final_norm
from replaceme_core.models.verify import NEW_TOKENS, verify_saved
from replaceme_core.resolved_spec import ResolvedSpec
from replaceme_core.results.base_card import read_base_card
from replaceme_core.results.card.write import write_card
from replaceme_core.results.checkpoint import Checkpoint
from replaceme_core.results.layer_angles import layer_angles
from replaceme_core.results.metrics import report_candidates, report_capture, report_comparison
from replaceme_core.results.outcome import RunOutcome
from replaceme_core.results.plan_report import plan_run
from replaceme_core.results.provenance import provenance_of
from replaceme_core.results.report import write_report
from replaceme_core.results.stage_clock import StageClock, resident_bytes
from replaceme_core.runner.eta import writing_part
from replaceme_core.runner.messages import Exchange, Finished, Progress, RunnerRequest, Stage
from replaceme_core.sharding.sharded_pass import ShardedPass, resolve_shards
from replaceme_core.spec import Loading

CHECKED_TOKENS = 64
PROMPT_TOKENS = 32
_DOES_NOT_RUN = "the model does not run on the calibration text"


@torch.inference_mode()
def compress(request: RunnerRequest, progress: Progress, exchange: Exchange | None = None) -> Finished:
    """Carry out `request`; its output directory is created last, complete.

    Through `exchange` other workers may compute shards of the calibration. Raises the errors of
    `replaceme_core.errors`; a run that fails leaves nothing behind.
    """
    imported_bytes = resident_bytes()
    source = Path(request.model_directory)
    outline = read_outline(source)
    remove = check_removal(request.spec, outline)
    stored = stored_weights(source)
    allows = pattern_rule(request.spec, load_config(source), outline.layout)
    spec = resolve_spec(
        request.spec,
        weights=stored.values,
        needs_accelerator=request.needs_accelerator,
        keeps_pattern=allows is not None,
    )
    spec = resolve_shards(spec, request)
    dtype = make_deterministic(spec.compute)
    planned = plan_run(request, spec, outline=outline, removed=remove)
    clock = StageClock(progress=progress, device=torch.device(spec.compute.device), modelled=planned.duration.modelled)
    progress.resolved(spec)
    run = _Run(
        request=request,
        spec=spec,
        source=source,
        stored=stored,
        dtype=dtype,
        clock=clock,
        exchange=exchange,
        tasks=tasks_of(request),
    )
    # fewer bytes than there will be: what is outside the blocks stays whole
    least = stored.values * stored.dtype.itemsize * (outline.blocks - remove) // outline.blocks
    with complete_or_absent(Path(request.output_directory), least=least) as output:
        clock.begin(Stage.CALIBRATE)
        with run.opened(remove, allows=allows) as task:
            tokens = task.tokens
            structure = task.block_runner.resolved.structure
            checkpoint = Checkpoint.of(request, task)
            pruning = checkpoint.restore()
            if pruning is None:
                calibrated = find_method(spec.method.name)(task)
                if isinstance(calibrated, Calibrated):
                    clock.begin(Stage.SELECT)
                    selected = calibrated.select()
                else:  # the request names the blocks
                    selected = calibrated
                clock.begin(Stage.SOLVE)
                pruning = checkpoint.keep(selected.solve())
                del calibrated, selected
            else:
                clock.begin(Stage.SOLVE, resumed_from=Stage.SOLVE)
            captured = task.activations.record()
            angles = layer_angles(task.activations)
        del task
        report_capture(progress, captured, shards=spec.compute.shards)
        report_candidates(progress, pruning.candidates)

        removed = list(pruning.removed)
        kept = kept_blocks(outline.blocks, removed)
        clock.begin(Stage.FOLD)
        model = run.model_as_stored()
        resolved = resolve(model)
        scale_final_norm(resolved, pruning.final_scale)
        if spec.compute.loading is Loading.BLOCKWISE:
            clock.begin(Stage.SAVE)
            change = partial(change_block, pruning=pruning)
            save_block_by_block(model, output, source=source, removed=removed, change=change)
        else:
            for block in range(outline.blocks):
                change_block(resolved, block, pruning=pruning)
            remove_blocks(resolved, removed)
            clock.begin(Stage.SAVE)
            save_model(model, output, source=source)
        del model, resolved
        run.release()
        difference = verify_saved(
            output,
            dtype=stored.dtype,
            blocks=len(kept),
            prompt=tokens.fit[0, :PROMPT_TOKENS],
            device=spec.compute.device,
            loading=spec.compute.loading,
            reading=clock.loading,
        )
        progress.metric("cache_difference", difference, "ratio")

        comparison = None
        if spec.evaluation.enabled:
            clock.begin(Stage.EVALUATE)
            comparison = run.evaluate(output, tokens)
        clock.end()
        assert run.tokenizer is not None, "it was loaded for the calibration"
        outcome = RunOutcome(
            spec=spec,
            job_id=request.job_id,
            removed=removed,
            kept=kept,
            method=Method(pruning.method or spec.method.name),
            structure=structure if spec.method.structure is None else spec.method.structure,
            candidates=list(pruning.candidates),
            captured=captured,
            comparison=comparison,
            stages=clock.records,
            loading_seconds=clock.loading_seconds,
            imported_bytes=imported_bytes,
            provenance=provenance_of(request, spec, tokens, stored=stored.dtype),
            base_card=read_base_card(source),
            is_chat=run.tokenizer.chat_template is not None,
            layer_angles=angles,
            irregular=irregular_lists(load_config(output), layout=outline.layout),
            planned=planned,
            left_out=pruning.left_out,
        )
        write_card(output, outcome)
        report = write_report(output, outcome)
    return Finished(removed_blocks=removed, kept_blocks=kept, report=report)


@dataclass(kw_only=True)
class _Run:
    """The models of one run: one at a time is in memory, except while both are measured."""

    request: RunnerRequest
    spec: ResolvedSpec
    source: Path
    stored: StoredWeights
    dtype: torch.dtype
    clock: StageClock
    exchange: Exchange | None
    tasks: LoadedTasks | None
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    @contextmanager
    def opened(self, remove: int, *, allows: Allows | None) -> Iterator[Task]:
        """Read the text, load the model, check it on the text, and prepare the capture of its activations."""
        request, spec, progress = self.request, self.spec, self.clock.progress
        paths = [None if path is None else Path(path) for path in request.calibration_paths]
        config = load_config(self.source)
        check_positions(config, longest=max(spec.calibration.max_length, PROMPT_TOKENS + NEW_TOKENS))
        tokenizer = self.tokenizer = load_tokenizer(self.source)
        tokens = calibration_tokens(spec, tokenizer, paths=paths, vocabulary=config.vocab_size)
        with self.clock.loading():
            self.model = open_for_capture(self.source, dtype=self.dtype, compute=spec.compute)
        writing = writing_part(spec)
        if writing > 0:
            advance = partial(_advance, progress, 0.0, writing)
            with library_errors(_DOES_NOT_RUN):
                tokens = with_self_generated(tokens, spec.calibration, self.model, tokenizer, advance=advance)
        block_runner = BlockRunner(resolved=resolve(self.model))
        size = activation_bytes(block_runner, tokens=tokens.fit.numel() + tokens.held_out.numel())
        by_block, place = spec.compute.loading is Loading.BLOCKWISE, Path(request.output_directory)
        in_shards = spec.compute.shards > 1
        with ExitStack() as stack:
            cached = None
            if not in_shards:  # else no worker sees all streams
                cached = stack.enter_context(find_cached_activations(request, spec=spec, tokens=tokens, size=size))
            activations = Activations(
                block_runner=block_runner,
                fit=tokens.fit,
                held_out=tokens.held_out,
                held_out_sources=tokens.held_out_sources,
                source_names=tokens.sources,
                batch_size=spec.compute.batch_size,
                advance=partial(_advance, progress, writing, 1.0),
                cached=cached,
                always_store=by_block,
                make_store=partial(scratch_store, stack, beside=place, size=size, memory=not by_block),
                make_held_out_store=lambda: stack.enter_context(SpillingStore(beside=place)),
                run_windows=ShardedPass.of(request, spec, self.exchange) if in_shards else capture_windows,
                in_shards=in_shards,
                allows=allows,
            )
            with library_errors(_DOES_NOT_RUN):
                error = activations.prove(CHECKED_TOKENS)
            progress.metric("residual_check_error", error, "ratio")
            yield Task(
                block_runner=block_runner,
                tokens=tokens,
                activations=activations,
                spec=spec,
                remove=remove,
                progress=progress,
            )

    def model_as_stored(self) -> PreTrainedModel:
        """The model with its weights as they are stored, not in a rounded copy: maps are folded into these."""
        compute = self.spec.compute
        loaded_as_stored = self.dtype == self.stored.dtype and compute.quantization is None
        if self.model is None or not loaded_as_stored or compute.loading is Loading.BLOCKWISE:
            self.release()
            with self.clock.loading():
                self.model = open_model(
                    self.source, dtype=self.stored.dtype, device=compute.device, loading=compute.loading
                )
        return self.model

    def release(self) -> None:
        """Free the model."""
        self.model = None
        release_memory()

    def evaluate(self, output: Path, tokens: TokenSet) -> Comparison:
        """The source model and the one in `output`."""
        compute, progress = self.spec.compute, self.clock.progress
        assert self.tokenizer is not None, "it was loaded for the calibration"
        with self.clock.loading():
            before, after = open_pair(self.source, output, dtype=self.dtype, compute=compute, place=self.request)
        found = compare(
            before,
            after,
            tokens,
            self.tokenizer,
            generates=compute.loading is not Loading.BLOCKWISE,
            seed=self.spec.calibration.seed,
            advance=progress.advance,
            tasks=self.tasks,
        )
        report_comparison(progress, found, gate=self.spec.gate)
        return found


def _advance(progress: Progress, start: float, end: float, fraction: float) -> None:
    """`fraction` of the part of the present stage from `start` to `end` is done."""
    progress.advance(start + (end - start) * fraction)
