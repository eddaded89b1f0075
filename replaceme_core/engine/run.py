"""The models and the steps of one run, and the search for the deepest cut that passes the gate."""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.activations.cache import ActivationCache, CachedActivations, entry_key, scratch_store
from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.evaluation.compare import Comparison, Original, Unmeasured, judge, measured_values
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.embeddings import OriginalOfImages, tokenizer_of_text_tower
from replaceme_core.engine.evaluation.measure import PRUNED, SOURCE, Subject
from replaceme_core.engine.evaluation.tasks import LoadedTasks
from replaceme_core.engine.methods.task import Pruning, Task
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.changes import apply_changes, fold, kept_blocks, remove_blocks, scale_final_norm
from replaceme_core.engine.model.lazy_model import open_for_capture, open_model
from replaceme_core.engine.model.load import StoredWeights, check_positions, load_config
from replaceme_core.engine.model.save import NEW_TOKENS, save_block_by_block, save_model
from replaceme_core.engine.results.checkpoint import decide
from replaceme_core.engine.results.metrics import report_trial
from replaceme_core.engine.results.stage_clock import StageClock
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.engine.text.panel import with_panel
from replaceme_core.engine.text.tokens import beginning_of_text, calibration_tokens, with_self_generated
from replaceme_core.errors import InvalidInput, NumericalFailure
from replaceme_core.families.resolve import ResolvedModel, part_config, resolve
from replaceme_core.hub.model_config import ModelOutline
from replaceme_core.library_errors import library_errors
from replaceme_core.plan.eta import writing_part
from replaceme_core.request.gate import Trial, most_trials
from replaceme_core.request.removal import Allows
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.request.spec import Loading
from replaceme_core.runner.messages import Measured

CHECKED_TOKENS = 64
PROMPT_TOKENS = 32
_DOES_NOT_RUN = "the model does not run on what calibrates it"


def change_block(resolved: ResolvedModel, block: int, *, pruning: Pruning) -> None:
    """Fold the maps of `block` and add its changes, in place."""
    for one in pruning.folds:
        if one.cut.anchor == block and bool(one.delta.any()):
            fold(resolved, one)
    apply_changes(resolved, [one for one in pruning.changes if one.block == block])


@dataclass(kw_only=True)
class Run:
    """What a run is given, and the model that it holds at present."""

    spec: ResolvedSpec
    given: Path
    """The directory of the model as it is published; its size counts."""
    source: Path
    """The same; of a quantized model, the copy in full precision."""
    outline: ModelOutline
    output: Path
    text_paths: Sequence[Path | None]
    cache: ActivationCache | None
    checkpoints: Path | None
    stored: StoredWeights
    dtype: torch.dtype
    clock: StageClock
    tasks: LoadedTasks | None
    tokenizer: PreTrainedTokenizerBase | None
    """`None` where the model reads `images`."""
    images: TokenSet | None
    unmeasured: Unmeasured
    model: PreTrainedModel | None = None

    @property
    def is_lazy(self) -> bool:
        """Whether models are read block by block."""
        return self.spec.compute.loading is Loading.BLOCKWISE

    @contextmanager
    def opened(self, remove: int, *, allows: Allows) -> Iterator[Task]:
        """Read the text, load the model, check it on the text, and prepare the capture of its activations."""
        spec, progress = self.spec, self.clock.progress
        tokens = self._text() if self.images is None else self.images
        with self.clock.loading():
            self.model = open_for_capture(self.source, dtype=self.dtype, compute=spec.compute)
        block_runner = BlockRunner(resolved=resolve(self.model), pixels=tokens.pixels)
        writing = writing_part(spec)
        with library_errors(_DOES_NOT_RUN):
            if self.images is None:
                tokens = self._beside_text(tokens, self.model, writing=writing)
            else:
                block_runner.remember(tokens.held_out[:, 0])
        size = activation_bytes(block_runner, tokens=tokens.fit.numel() + tokens.held_out.numel())
        with ExitStack() as stack:
            cached = None
            if self.cache is not None and self.cache.has_room(size):
                key = entry_key(self.source, tokens=tokens, compute=spec.compute)
                cached = stack.enter_context(closing(CachedActivations(cache=self.cache, key=key)))
            activations = Activations(
                block_runner=block_runner,
                text=tokens,
                batch_size=spec.compute.batch_size,
                advance=lambda part: progress.advance(writing + (1.0 - writing) * part),
                cached=cached,
                always_store=self.is_lazy,
                make_store=partial(scratch_store, stack, beside=self.output),
                may_go=allows,
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
                begin=self.clock.begin,
            )

    def _text(self) -> TokenSet:
        """The tokens of the texts that the request names."""
        assert self.tokenizer is not None
        spec, config = self.spec, load_config(self.source)
        if spec.heal is not None:  # what may not be trained on is the same without an evaluation
            spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"enabled": True})})
        check_positions(config, longest=max(spec.calibration.max_length, PROMPT_TOKENS + NEW_TOKENS))
        vocabulary = part_config(config).vocab_size
        return calibration_tokens(spec, self.tokenizer, paths=self.text_paths, vocabulary=vocabulary)

    def _beside_text(self, tokens: TokenSet, model: PreTrainedModel, *, writing: float) -> TokenSet:
        """The same with what the model generates, which is that part of the stage, and what is made for judging."""
        assert self.tokenizer is not None
        calibration = self.spec.calibration
        if writing > 0:
            generate = partial(
                self.dense_results().own_text,
                model,
                self.tokenizer,
                length=calibration.max_length,
                seed=calibration.seed,
                advance=lambda part: self.clock.progress.advance(writing * part),
            )
            tokens = with_self_generated(tokens, calibration, generate)
        prefix = len(beginning_of_text(self.tokenizer))
        return with_panel(tokens, calibration, self.tokenizer, prefix=prefix)

    def model_as_stored(self) -> PreTrainedModel:
        """The model with its weights as they are stored, not in a rounded copy: maps are folded into these."""
        loaded_as_stored = self.dtype == self.stored.dtype and self.spec.compute.quantization is None
        if self.model is None or not loaded_as_stored or self.is_lazy:
            self.release()
            self.model = self.load(self.source, dtype=self.stored.dtype)
        return self.model

    def write(
        self,
        model: PreTrainedModel,
        output: Path,
        *,
        pruning: Pruning,
        begin_saving: Callable[[], None] = lambda: None,
    ) -> None:
        """Fold, remove and save into `output`; `model`, with its weights as they are stored, is changed in place."""
        resolved, removed = resolve(model), list(pruning.removed)
        scale_final_norm(resolved, pruning.final_scale)
        if self.is_lazy:
            begin_saving()
            change = partial(change_block, pruning=pruning)
            save_block_by_block(model, output, source=self.source, removed=removed, change=change)
            return
        for block in range(len(resolved.blocks)):
            change_block(resolved, block, pruning=pruning)
        remove_blocks(resolved, removed)
        begin_saving()
        save_model(model, output, source=self.source)

    def load(self, directory: Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The model in `directory`, by default in the dtype to compute in."""
        compute = self.spec.compute
        with self.clock.loading():
            return open_model(directory, dtype=dtype or self.dtype, device=compute.device, loading=compute.loading)

    def release(self) -> None:
        """Free the model."""
        self.model = None
        release_memory()

    def dense_results(self) -> DenseResults:
        """What an evaluation finds of the source model, kept in the activation cache if there is one."""
        return DenseResults.of(self.source, self.cache, self.spec.compute)

    def original(self, tokens: TokenSet, results: DenseResults) -> Original | OriginalOfImages:
        """The source model, to compare results with; what is found of it is kept in `results`.

        It is the one that activations are captured from, where that is in the dtype to measure in; else another one.
        """
        held = self.model if self.spec.compute.quantization is None else None
        model = self.load(self.source) if held is None else held
        subject = Subject(name=SOURCE, model=model, directory=self.given, results=results)
        if self.tokenizer is None:
            assert tokens.pictures is not None
            return OriginalOfImages(
                subject=subject,
                pictures=tokens.pictures,
                numbers=tokens.measure[:, 0].tolist(),
                name=tokens.sources[0],
                tokenizer=tokenizer_of_text_tower(self.source, model),
                unmeasured=self.unmeasured,
            )
        return Original(
            subject=subject,
            tokens=tokens,
            tokenizer=self.tokenizer,
            generates=not self.is_lazy,
            seed=self.spec.calibration.seed,
            tasks=self.tasks,
            unmeasured=self.unmeasured,
            trained_on=[source.name for source in self.spec.texts[len(self.spec.calibration.mix) :]],
        )

    def evaluate(
        self, output: Path, tokens: TokenSet, *, kept: Sequence[int], known: Comparison | None = None
    ) -> Comparison:
        """The source model and the one in `output`, of its blocks `kept`; `known` is what a trial has measured."""
        original = self.original(tokens, self.dense_results())
        after = Subject(name=PRUNED, model=self.load(output), directory=output, kept=kept)
        if known is None:
            known = original.compare(after, advance=self.clock.progress.advance)
        return original.finish(known, after)


DECIDING_PART = 0.6
"""Of the progress of a trial; the rest is for carrying it out and measuring."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What the method decided for one depth, its metrics, and what the result is worth."""

    pruning: Pruning
    metrics: Sequence[Measured]
    comparison: Comparison
    unmeasured: Sequence[str]


def depths_to_try(depths: Sequence[int], *, blocks: int, first: int, allows: Allows) -> Sequence[int]:
    """Those of `depths` that may go in the middle of the model, if there are any; its `first` blocks stay.

    For a pattern of blocks these are the multiples of its length. Other depths keep it only near the end, which costs
    much more: by such a depth, bisection would wrongly rule out a deeper one.
    """
    first = max(first, 1)  # a cut follows a kept block
    starts = {depth: first + (blocks - first - depth) // 2 for depth in depths}
    return [depth for depth, start in starts.items() if allows(range(start, start + depth))] or depths


def find_deepest_cut(run: Run, task: Task, depths: Sequence[int]) -> tuple[Tried, list[Trial]]:
    """The deepest of `depths`, which ascend, that passes the gate, by bisection, and all trials in order.

    Where quality does not only fall with depth, it is one after which a deeper one was seen to fail. Where none passes,
    the deepest one that is not worse than wanted, or the shallowest that was measured: its report says by how much the
    gate is missed. Raises the error of the last trial where nothing could be measured.
    """
    with run.dense_results().for_several(beside=run.output) as results:
        search = _Search(run=run, task=task, original=run.original(task.tokens, results), most=most_trials(len(depths)))
        bisect_left(depths[::-1], True, key=lambda depth: not search.is_too_deep(depth))
    if search.kept is None:
        assert search.error is not None, "a trial is kept, or has failed"
        raise search.error
    for metric in search.kept.metrics:
        task.progress.send(metric)
    run.unmeasured.found.extend(search.kept.unmeasured)
    return search.kept, search.trials


@dataclass(kw_only=True)
class _Search:
    """The trials so far. Of one of them, which may be the result, all is kept."""

    run: Run
    task: Task
    original: Original | OriginalOfImages
    most: int
    trials: list[Trial] = field(default_factory=list)
    kept: Tried | None = None
    error: Exception | None = None

    def is_too_deep(self, depth: int) -> bool:
        """Try the removal of `depth` blocks."""
        began, number, size = time.perf_counter(), len(self.trials), 1 / self.most
        gate, progress = self.task.spec.gate, self.task.progress
        assert gate is not None, "the specification was checked"
        try:
            tried = self._try(depth, start=number * size, end=(number + 1) * size)
        except (NumericalFailure, InvalidInput) as error:
            self.error = error
            trial = Trial(blocks=depth, passed=False, measured={}, seconds=0.0, problem=error.message)
        else:
            result, values = judge(gate, tried.comparison), measured_values(tried.comparison)
            trial = Trial(
                blocks=depth,
                removed_blocks=tuple(tried.pruning.removed),
                passed=result.passed,
                criteria=result.criteria,
                measured={name: value for name, value in values.items() if math.isfinite(value)},
                seconds=0.0,
            )
            if not trial.is_too_deep or all(one.is_too_deep for one in self.trials):
                self.kept = tried
        release_memory()
        trial = trial.model_copy(update={"seconds": time.perf_counter() - began})
        self.trials.append(trial)
        report_trial(progress, trial)
        progress.advance((number + 1) * size)
        return trial.is_too_deep

    def _try(self, depth: int, *, start: float, end: float) -> Tried:
        """Decide, carry it out, and measure the result beside the source model, as it would be published."""
        run, middle, metrics = self.run, start + (end - start) * DECIDING_PART, list[Measured]()
        part = self.task.progress.part(start, middle, on_metric=metrics.append)  # reported if it is the chosen one
        self.task.activations.advance = part.advance
        task = replace(self.task, remove=depth, progress=part, begin=lambda stage, **_: None)
        pruning = decide(task, run.checkpoints)
        release_memory()
        rest = self.task.progress.part(middle, end)
        with TemporaryDirectory(prefix=f".{run.output.name}.trial-", dir=run.output.parent) as place:
            directory = Path(place)
            run.write(run.load(run.source, dtype=run.stored.dtype), directory, pruning=pruning)
            release_memory()
            kept = kept_blocks(run.outline.blocks, pruning.removed)
            after = Subject(name=PRUNED, model=run.load(directory), directory=directory, kept=kept)
            # of this trial, which may not be the result
            unmeasured = self.original.unmeasured = Unmeasured(gate=run.spec.gate)
            comparison = self.original.compare(after, advance=rest.advance)
        return Tried(pruning=pruning, metrics=metrics, comparison=comparison, unmeasured=unmeasured.found)
