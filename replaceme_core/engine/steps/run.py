"""The models of one run: one at a time is in memory, except while two are measured beside each other."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.activations.cached_activations import find_cached_activations, scratch_store
from replaceme_core.engine.activations.capture import Activations
from replaceme_core.engine.activations.spill_to_disk import SpillingStore
from replaceme_core.engine.activations.tensor_store import activation_bytes
from replaceme_core.engine.evaluation.compare import Comparison, Original, Unmeasured
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.measure import Subject, open_pair
from replaceme_core.engine.evaluation.tasks import LoadedTasks
from replaceme_core.engine.methods.protocol import Task
from replaceme_core.engine.methods.refit.part_of_text import STREAM_BYTES
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.block_runner import BlockRunner
from replaceme_core.engine.model.lazy_model import open_model
from replaceme_core.engine.model.load import StoredWeights, check_positions, load_config
from replaceme_core.engine.model.quantized import open_for_capture
from replaceme_core.engine.model.verify import NEW_TOKENS
from replaceme_core.engine.results.stage_clock import StageClock
from replaceme_core.engine.text.packing import TokenSet, beginning_of_text
from replaceme_core.engine.text.repeated import with_repeated
from replaceme_core.engine.text.tokens import calibration_tokens, with_self_generated
from replaceme_core.families.resolve import resolve
from replaceme_core.library_errors import library_errors
from replaceme_core.request.removal import Allows
from replaceme_core.request.resolve import ResolvedSpec
from replaceme_core.request.spec import Loading
from replaceme_core.runner.eta import writing_part
from replaceme_core.runner.messages import Progress
from replaceme_core.runner.requests import RunnerRequest

CHECKED_TOKENS = 64
PROMPT_TOKENS = 32
_DOES_NOT_RUN = "the model does not run on the calibration text"


@dataclass(kw_only=True)
class Run:
    """What a run is given, and the model that it holds at present."""

    request: RunnerRequest
    spec: ResolvedSpec
    source: Path
    stored: StoredWeights
    dtype: torch.dtype
    clock: StageClock
    tasks: LoadedTasks | None
    tokenizer: PreTrainedTokenizerBase
    unmeasured: Unmeasured
    model: PreTrainedModel | None = None

    @property
    def is_lazy(self) -> bool:
        """Whether models are read block by block."""
        return self.spec.compute.loading is Loading.BLOCKWISE

    @contextmanager
    def opened(self, remove: int, *, allows: Allows | None) -> Iterator[Task]:
        """Read the text, load the model, check it on the text, and prepare the capture of its activations."""
        request, spec, progress = self.request, self.spec, self.clock.progress
        config = load_config(self.source)
        check_positions(config, longest=max(spec.calibration.max_length, PROMPT_TOKENS + NEW_TOKENS))
        tokenizer = self.tokenizer
        tokens = calibration_tokens(
            spec, tokenizer, paths=request.text_paths(spec.calibration.mix), vocabulary=config.vocab_size
        )
        with self.clock.loading():
            self.model = open_for_capture(self.source, dtype=self.dtype, compute=spec.compute)
        writing = writing_part(spec)
        if writing > 0:
            generate = partial(self._own_text, self.model, advance=partial(_advance, progress, 0.0, writing))
            with library_errors(_DOES_NOT_RUN):
                tokens = with_self_generated(tokens, spec.calibration, generate)
        prefix = len(beginning_of_text(tokenizer))
        tokens = with_repeated(tokens, spec.calibration, method=spec.method.name, prefix=prefix)
        block_runner = BlockRunner(resolved=resolve(self.model))
        size = activation_bytes(block_runner, tokens=tokens.fit.numel() + tokens.held_out.numel())
        by_block, place = self.is_lazy, Path(request.output_directory)
        one_pass = spec.searches and size <= STREAM_BYTES  # which serves all trials
        with ExitStack() as stack:
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
                always_store=by_block or one_pass,
                make_store=partial(scratch_store, stack, beside=place, size=size, memory=not by_block),
                make_held_out_store=lambda: stack.enter_context(SpillingStore(beside=place)),
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
        loaded_as_stored = self.dtype == self.stored.dtype and self.spec.compute.quantization is None
        if self.model is None or not loaded_as_stored or self.is_lazy:
            self.release()
            self.model = self.another_as_stored()
        return self.model

    def another_as_stored(self) -> PreTrainedModel:
        """The same, beside the model that is held."""
        compute = self.spec.compute
        with self.clock.loading():
            return open_model(self.source, dtype=self.stored.dtype, device=compute.device, loading=compute.loading)

    def release(self) -> None:
        """Free the model."""
        self.model = None
        release_memory()

    def dense_results(self) -> DenseResults:
        """What an evaluation finds of the source model, kept in the activation cache if there is one."""
        return DenseResults.of(self.source, self.request, self.spec.compute)

    def _own_text(self, model: PreTrainedModel, count: int, *, advance: Callable[[float], None]) -> torch.Tensor:
        """`count` sequences (count, length) that `model` generates; they are kept beside the activations."""
        calibration = self.spec.calibration
        return self.dense_results().own_text(
            model,
            self.tokenizer,
            count=count,
            length=calibration.max_length,
            seed=calibration.seed,
            advance=advance,
        )

    def original(self, subject: Subject, tokens: TokenSet) -> Original:
        """The source model, to compare results with."""
        return Original(
            subject=subject,
            tokens=tokens,
            tokenizer=self.tokenizer,
            generates=not self.is_lazy,
            seed=self.spec.calibration.seed,
            tasks=self.tasks,
            unmeasured=self.unmeasured,
        )

    def evaluate(self, output: Path, tokens: TokenSet, *, known: Comparison | None = None) -> Comparison:
        """The source model and the one in `output`; `known` is what a trial has measured of both."""
        results = self.dense_results()
        with self.clock.loading():
            before, after = open_pair(self.source, output, dtype=self.dtype, compute=self.spec.compute, results=results)
        original = self.original(before, tokens)
        if known is None:
            known = original.compare(after, advance=self.clock.progress.advance)
        return original.finish(known, after)


def _advance(progress: Progress, start: float, end: float, fraction: float) -> None:
    """`fraction` of the part of the present stage from `start` to `end` is done."""
    progress.advance(start + (end - start) * fraction)
