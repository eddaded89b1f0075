"""Compress a model: the method's own story, from top to bottom (ReplaceMe, arXiv 2505.02819).

resolve    the machine and the text decide what the specification leaves open
calibrate  the model is loaded and checked; its activations on the calibration tokens are captured
select     the blocks to remove are chosen by the residual and the loss after the fit
solve      what compensates for them is solved in closed form, from all calibration tokens
fold       the solution is folded into the weights that stay, and the blocks are removed
heal       where it is asked for: the rest is trained toward what the original predicts
save       in the model's own dtype; loaded again and checked
evaluate   before and after, in the same run

What a method does in `calibrate`, `select` and `solve` is in `methods/`; it begins the last two itself. Where the
deepest cut that passes the gate is asked for, `select` is a search, each trial of which goes through all of it
(`run.py`).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from replaceme_core.engine.activations.cache import open_cache
from replaceme_core.engine.activations.capture import with_intact_streams
from replaceme_core.engine.evaluation.compare import Unmeasured
from replaceme_core.engine.evaluation.tasks import load_tasks
from replaceme_core.engine.healing.targets import HealingText, require_training
from replaceme_core.engine.images import image_tokens, load_processor
from replaceme_core.engine.methods.task import Pruning
from replaceme_core.engine.model.changes import kept_blocks
from replaceme_core.engine.model.dequantize import in_full_precision
from replaceme_core.engine.model.device import make_deterministic, this_machine
from replaceme_core.engine.model.load import load_config, load_tokenizer, stored_weights
from replaceme_core.engine.model.save import complete_or_absent, verify_saved
from replaceme_core.engine.results.checkpoint import decide
from replaceme_core.engine.results.layer_angles import layer_angles
from replaceme_core.engine.results.metrics import report_candidates, report_comparison, report_values
from replaceme_core.engine.results.outcome import plan_run, write_report
from replaceme_core.engine.results.provenance import provenance_of
from replaceme_core.engine.results.stage_clock import StageClock, resident_bytes
from replaceme_core.engine.run import PROMPT_TOKENS, Run, depths_to_try, find_deepest_cut
from replaceme_core.engine.text.tokens import sized_to_text
from replaceme_core.families.layout import first_blocks
from replaceme_core.families.resolve import part_config
from replaceme_core.hub.model_config import read_outline
from replaceme_core.hub.model_files import INDEX, copy_files, side_files, weight_files
from replaceme_core.plan.resources import Workload
from replaceme_core.request.gate import Trial
from replaceme_core.request.removal import depths_of, keep_pattern
from replaceme_core.request.resolve import resolve_spec
from replaceme_core.runner.messages import Finished, Progress, RunnerRequest, Stage

_ANY_CRITERION = ""


@torch.inference_mode()
def compress(request: RunnerRequest, progress: Progress) -> Finished:
    """Carry out `request`; its output directory is created last, complete.

    Raises the errors of `replaceme_core.errors`; a run that fails leaves nothing behind.
    """
    imported_bytes = resident_bytes()
    with in_full_precision(Path(request.model_directory), beside=Path(request.output_directory)) as source:
        return _compress(request, progress, source=source, imported_bytes=imported_bytes)


def _compress(request: RunnerRequest, progress: Progress, *, source: Path, imported_bytes: int) -> Finished:
    outline = read_outline(source)
    stored = stored_weights(source)
    tokenizer = None if outline.reads_images else load_tokenizer(source)
    depths: Sequence[int] = depths_of(request.spec, outline)
    config = load_config(source)
    first = first_blocks(config, layout=outline.layout)
    spec, allows = keep_pattern(request.spec, part_config(config), outline.layout, first=first)
    if spec.compute.pattern_safe or outline.layout.computed_lists:
        depths = depths_to_try(depths, blocks=outline.blocks, first=first, allows=allows)
    cache = open_cache(request.cache_directory, limit=request.cache_bytes)
    machine = this_machine(
        spec.compute.device,
        cache_bytes=0 if cache is None else request.cache_bytes,
        needs_accelerator=request.needs_accelerator,
    )
    spec = resolve_spec(
        spec,
        machine,
        values=stored.values,
        removed=depths[-1],
        positions=outline.positions,
        longest=outline.longest,
    )
    paths = [None if path is None else Path(path) for path in request.calibration_paths]
    of_healing = paths[len(request.spec.calibration.mix) :]
    del paths[len(request.spec.calibration.mix) :]
    paths += [None] * (len(spec.calibration.mix) - len(paths))  # a text that was added here is a built-in one
    if spec.heal is not None:
        require_training()
    images = None
    if tokenizer is not None:
        spec = sized_to_text(spec, tokenizer, requested=request.spec.calibration, paths=paths)
    else:
        spec, images = image_tokens(spec, load_processor(source), requested=request.spec, path=paths[0])
    dtype = make_deterministic(spec.compute)
    work = Workload(spec=spec, machine=machine, removed=depths[-1])
    planned = plan_run(work, source, outline, is_remote=request.hub is not None, history=request.history)
    clock = StageClock(progress=progress, device=torch.device(spec.compute.device), modelled=planned.duration.modelled)
    progress.resolved(spec, expected=planned.duration.stages)
    asked = spec.evaluation
    pruned = None if request.pruned_directory is None else Path(request.pruned_directory)
    run = Run(
        spec=spec,
        given=Path(request.model_directory),
        source=source,
        outline=outline,
        output=Path(request.output_directory),
        text_paths=paths,
        cache=cache,
        checkpoints=None if request.checkpoint_directory is None else Path(request.checkpoint_directory),
        stored=stored,
        dtype=dtype,
        clock=clock,
        tasks=load_tasks(
            asked.tasks, directory=request.tasks_directory, limit=asked.task_limit, few_shot=asked.few_shot
        ),
        tokenizer=tokenizer,
        images=images,
        unmeasured=Unmeasured(gate=spec.gate),
    )
    # fewer bytes than there will be: what is outside the blocks stays whole
    least = stored.values * stored.dtype.itemsize * (outline.blocks - depths[-1]) // outline.blocks
    with complete_or_absent(run.output, least=least) as output:
        clock.begin(Stage.CALIBRATE)
        with run.opened(depths[-1], allows=allows) as task:
            tokens = task.tokens
            text = None
            if spec.heal is not None and tokenizer is not None:  # read early: it may be too short
                text = HealingText.of(task, tokenizer, paths=[*paths, *of_healing])
            structure, loss_unit = task.block_runner.resolved.structure, task.block_runner.loss_unit
            known, trials = None, list[Trial]()
            if spec.searches:
                task.activations.capture()  # one dense pass serves all trials
                clock.begin(Stage.SELECT)
                found, trials = find_deepest_cut(run, task, depths)
                pruning, known = found.pruning, found.comparison
                clock.begin(Stage.SOLVE)  # the solution is that of the trial
            elif pruned is not None:
                pruning = Pruning(removed=spec.drop or (), method=request.pruned_by)
            else:
                pruning = decide(task, run.checkpoints)
            captured = task.activations.record()
            angles = with_intact_streams(partial(layer_angles, task.activations))
        del task
        report_values(progress, captured.metrics())
        report_candidates(progress, pruning.candidates, unit=loss_unit)

        removed = list(pruning.removed)
        kept = kept_blocks(outline.blocks, removed)
        clock.begin(Stage.FOLD)
        if pruned is None:
            following = Stage.SAVE if text is None else Stage.HEAL
            run.write(run.model_as_stored(), output, pruning=pruning, begin_saving=partial(clock.begin, following))
        else:
            files = [*weight_files(pruned), *side_files(pruned)]
            if (pruned / INDEX).exists():
                files.append(pruned / INDEX)
            copy_files(files, pruned, output)
            clock.begin(Stage.HEAL)
        run.release()
        healing = None
        if text is not None:
            from replaceme_core.engine.healing.heal import heal  # it imports the library that trains

            healing = heal(run, output, tokens, text=text, removed=removed)
            clock.begin(Stage.SAVE)
            known = None if healing["is_kept"] else known
        difference = verify_saved(
            output,
            dtype=stored.dtype,
            blocks=len(kept),
            prompt=tokens.fit[0, :PROMPT_TOKENS],
            pixels=None if tokens.pixels is None else tokens.pixels[:1],
            device=spec.compute.device,
            loading=spec.compute.loading,
            reading=clock.loading,
        )
        if difference is not None:
            progress.metric("cache_difference", difference, "ratio")

        comparison = None
        if spec.evaluation.enabled:
            clock.begin(Stage.EVALUATE)
            with run.unmeasured.part("the result", _ANY_CRITERION):  # which is there, whatever fails now
                comparison = run.evaluate(output, tokens, kept=kept, known=known)
            if comparison is not None:
                report_comparison(progress, comparison, gate=spec.gate)
        clock.end()
        provenance = provenance_of(
            spec,
            tokens,
            hub=request.hub,
            original=run.given,
            source=source,
            paths=[*paths, *of_healing],
            stored=stored.dtype,
        )
        report = write_report(
            output,
            run,
            pruning=pruning,
            captured=captured,
            comparison=comparison,
            angles=angles,
            structure=structure,
            planned=planned,
            trials=trials,
            healing=healing,
            provenance=provenance,
            job_id=request.job_id,
            imported_bytes=imported_bytes,
        )
    return Finished(report=report)
