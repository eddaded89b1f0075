"""The stage `heal`: what the original predicts is written down, the pruned model is trained toward it, and judged.

The loss of the training is the divergence from the original's next-token distribution (`targets`). Every so often the
model is judged on the panel, which nothing is trained on; the best state is kept. Weights are in float32 while they are
trained, and computed with in the dtype of the job. The result is never worse than without: the pruned model that came
out of the closed forms stays unless the trained one is better on the panel by more than a standard error.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import default_collate
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from replaceme_core.engine.activations.cache import file_digest
from replaceme_core.engine.activations.capture import Losses, schedule
from replaceme_core.engine.activations.verified_file import content_digest
from replaceme_core.engine.healing.targets import HealingText, Targets, loss_of, original_of, write_targets
from replaceme_core.engine.methods.panel import Panel
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.device import free_bytes
from replaceme_core.engine.model.save import save_model
from replaceme_core.engine.run import Run
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.families.resolve import ResolvedModel, resolve
from replaceme_core.hub.files import write_atomically
from replaceme_core.hub.model_files import INDEX, weight_files
from replaceme_core.library_errors import is_out_of_memory, is_out_of_space, require_space
from replaceme_core.request.defaults import (
    HEAL_AROUND,
    HEAL_BATCH,
    HEAL_JUDGED,
    HEAL_JUDGED_TOKENS,
    HEAL_LAST,
    HEAL_MISSES,
    HEAL_WARM_UP,
    HEAL_WEIGHT_SIZE,
    TARGET_BYTES,
)
from replaceme_core.request.removal import runs_of
from replaceme_core.request.resolve import HEALED_BYTES, healed_at_once, kept_for_gradients
from replaceme_core.request.spec import HealedWeights
from replaceme_core.runner.messages import describe
from replaceme_core.wording import counted, json_safe

logger = logging.getLogger(__name__)
TARGETS_PART, TRAINING_PART = 0.35, 0.6
"""Of the time of the stage; the rest is for judging."""
CHECKPOINT_SECONDS = 120.0
"""Between two checkpoints: a lost worker costs at most that time."""
CURVE = 50
"""Points of the curve of the loss."""
BEST = "best.safetensors"
"""What the best state is called, of the weights that are trained; it is there where one is better than none."""
_LOSS, _JUDGED, _ENDED = "heal_loss", "heal_panel_loss", "ended_early"
_DEVICE = "ACCELERATE_TORCH_DEVICE"
_BETAS = (0.9, 0.95)
_LARGEST_NORM = 1.0
_LEAST_SIZE = 1e-3
"""A weight that is zero is trained as if it had this size."""


def heal(
    run: Run, output: Path, tokens: TokenSet, *, text: HealingText, removed: Sequence[int]
) -> Mapping[str, object]:
    """Train the pruned model in `output`, without the blocks `removed`; what is better takes its place there.

    Returns what healing came to, for the report: `is_kept` if the trained model is the result, else `problem` says why
    it is not. `tokens` were trained on, of `sequences`, and `weights` says which values. The fields of the `Course` are
    there, too; `panel` has the loss of the three models on each source of the panel, in nats.
    """
    asked, progress = run.spec.heal, run.clock.progress
    assert asked is not None
    with (
        torch.inference_mode(mode=False),
        TemporaryDirectory(prefix=f".{run.output.name}.heal-", dir=output.parent) as scratch,
    ):
        key = content_digest([text.key, version("accelerate"), [file_digest(path) for path in weight_files(output)]])
        # targets and checkpoints are beside those of the job, if it has any, for its next attempt
        place, healed = (run.checkpoints or Path(scratch)) / f"heal-{key[:16]}", Path(scratch) / "healed"
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("checkpoints cannot be written: %s", error)
            place = Path(scratch)
        require_space(place, _disk_bytes(run, output, text), purpose="healing")
        targets = write_targets(place, text, run, advance=lambda part: progress.advance(TARGETS_PART * part))
        known = place / "original.json"
        if not known.exists():
            panel, losses = panel_of(original_of(run), tokens)
            write_atomically(known, json.dumps(dict(panel.by_source(losses))))
        original = json.loads(known.read_text())
        run.release()
        course, problem = Course(), None
        try:
            course = Training(
                run=run, output=output, removed=removed, targets=targets, tokens=tokens, place=place
            ).train()
            release_memory()
            if course.best > 0:
                _save_best(run, output, healed, best=place / BEST)
            else:
                problem = "no state of the training was better on the panel"
        except Exception as error:
            if not (is_out_of_memory(error) or is_out_of_space(error)):
                raise
            problem = describe(error).message
        release_memory()
        progress.advance(TARGETS_PART + TRAINING_PART)
        panel, before = panel_of(run.load(output), tokens)
        after: Losses | None = None
        if problem is None:
            panel, after = panel_of(run.load(healed), tokens)
            if not panel.is_worse(before, after):
                problem = "the trained model is not better on the panel by more than a standard error"
        if problem is None:
            for path in (*weight_files(output), output / INDEX):
                path.unlink(missing_ok=True)  # the new weights may be split into other files
            for path in healed.rglob("*"):
                if path.is_file():
                    path.replace(output / path.relative_to(healed))
    release_memory()
    by_source = {} if after is None else dict(panel.by_source(after))
    found = {
        "is_kept": problem is None,
        "problem": problem,
        "tokens": course.judged[-1]["tokens"] if course.judged else 0,
        "sequences": len(targets),
        "weights": str(asked.weights),
        "learning_rate": asked.learning_rate,
        **vars(course),
        "panel": [
            {"name": name, "original": original[name], "closed_form": loss, "healed": by_source.get(name)}
            for name, loss in panel.by_source(before)
        ],
    }
    return {name: json_safe(value, name=str) for name, value in found.items()}


def _disk_bytes(run: Run, output: Path, text: HealingText) -> int:
    """Of the targets, two checkpoints, the best state and the result, at most."""
    weights = sum(path.stat().st_size for path in weight_files(output))
    values = weights // run.stored.dtype.itemsize
    return text.count * text.length * TARGET_BYTES + 2 * HEALED_BYTES * values + weights


def _save_best(run: Run, output: Path, healed: Path, *, best: Path) -> None:
    """The model in `output` with the weights in the file `best`, each in the dtype that it is loaded with: what the
    class computes in float32, such as biases that choose experts, stays so."""
    model = run.load(output, dtype=run.stored.dtype)
    with torch.no_grad():
        for name, weight in load_file(best, device=str(model.device)).items():
            model.get_parameter(name).copy_(weight)
    save_model(model, healed, source=run.source)


@torch.inference_mode()
def panel_of(model: PreTrainedModel, tokens: TokenSet) -> tuple[Panel, Losses]:
    """The panel of the held-out sequences of `tokens`, each a batch of its own, and the losses of `model` on it."""
    batches, losses = dict(enumerate(batch for batch in schedule(tokens, 1) if batch.held_out)), dict[int, float]()
    for number, batch in batches.items():
        assert batch.scored is not None
        logits = model(input_ids=batch.tokens.to(model.device), use_cache=False).logits[0, :-1]
        wanted, counts = batch.tokens[0, 1:].to(logits.device), batch.scored[0, 1:]
        known = nn.functional.cross_entropy(logits.float(), wanted, reduction="none").cpu()
        losses[number] = float(known.double()[counts].sum())
    return Panel(batches=batches, names=tokens.sources), losses


def choose_weights(resolved: ResolvedModel, weights: HealedWeights | None, *, cuts: Sequence[int]) -> None:
    """Have only the weights that are trained take gradients. They are matrices: the values of a norm may differ by
    thousands, and no step suits them all.

    `cuts` are the blocks, as they are numbered now, that follow removed ones.
    """
    model, blocks = resolved.model, resolved.blocks
    parts: list[nn.Module] = [model]
    if weights is HealedWeights.SOME:
        parts = [
            block
            for number, block in enumerate(blocks)
            if number >= len(blocks) - HEAL_LAST or any(-HEAL_AROUND <= number - cut < HEAL_AROUND for cut in cuts)
        ]
    trained = {id(parameter) for part in parts for parameter in part.parameters()}
    trained -= {id(one) for one in model.get_input_embeddings().parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained and parameter.ndim > 1)


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a training came to, from the library's history of it, which a checkpoint has.

    Each of `losses` has the `tokens` so far and the mean `loss` since the one before. Each of `judged` is the panel
    after `tokens` and `seconds` of training: the `mean` loss in nats, and that on each of `sources` by name.
    `ended_early` says why it ended before all tokens were read, as the end of a sentence. `tokens_per_second` is that
    of this attempt; `None` where an earlier one has done all. `parameters` is the number of values that were trained.
    """

    losses: Sequence[Mapping[str, float]] = ()
    judged: Sequence[Mapping[str, Any]] = ()
    ended_early: str | None = None
    tokens_per_second: float | None = None
    parameters: int = 0

    @classmethod
    def of(cls, state: TrainerState, *, parameters: int = 0) -> "Course":
        """That of the training in this state."""

        def noted(name: str) -> list[Any]:
            return [row[name] for row in state.log_history if name in row]

        ended = next(iter(noted(_ENDED)), None)
        return cls(losses=noted(_LOSS), judged=noted(_JUDGED), ended_early=ended, parameters=parameters)

    @property
    def best(self) -> int:
        """The number of the best of `judged`, the first of several; 0 where there is none."""
        return min(range(len(self.judged)), key=lambda number: float(self.judged[number]["mean"]), default=0)


@dataclass(kw_only=True, eq=False)
class Training(TrainerCallback):
    """Trains the model in `output`, in float32, on `targets`. Checkpoints, and the best state, are in `place`.

    It is without the blocks `removed`. The panel of `tokens` judges it; a training that does not help ends.
    """

    run: Run
    output: Path
    removed: Sequence[int]
    targets: Targets
    tokens: TokenSet
    place: Path

    def train(self) -> Course:
        """Train, from the last checkpoint if there is one; one that has ended is not gone on with.

        It is judged before the first step, too: where nothing is better, no best state is kept.
        """
        spec = self.run.spec
        assert spec.heal is not None
        self.model = self.run.load(self.output, dtype=torch.float32)
        cuts = [first - sum(block < first for block in self.removed) for first, _ in runs_of(self.removed)]
        choose_weights(resolve(self.model), spec.heal.weights, cuts=cuts)
        parameters = sum(one.numel() for one in self.model.parameters() if one.requires_grad)
        checkpoint, state = _last_checkpoint(self.place)
        device, course = self.model.device, Course.of(state, parameters=parameters)
        first, steps = state.global_step, math.ceil(len(self.targets) / HEAL_BATCH)
        if course.ended_early is not None or first >= steps:
            return course
        self._budget, self._before = spec.heal.time_budget_seconds, course.judged[-1]["seconds"] if first else 0.0
        of_text, length = self.model.config.get_text_config(), self.targets.tokens.shape[1]
        at_once = healed_at_once(of_text.vocab_size * length)
        _, computed_twice = kept_for_gradients(
            at_once * length,
            blocks=of_text.num_hidden_layers,
            width=of_text.hidden_size,
            free=free_bytes(device),
        )
        if computed_twice:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})  # inputs need no gradient
        os.environ[_DEVICE] = str(device)
        arguments = TrainingArguments(
            output_dir=str(self.place),
            max_steps=steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=HEAL_BATCH // at_once,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(HEAL_WARM_UP * steps),
            max_grad_norm=_LARGEST_NORM,
            bf16=self.run.dtype is torch.bfloat16,
            fp16=self.run.dtype is torch.float16,
            use_cpu=device.type == "cpu",
            seed=spec.calibration.seed,
            save_strategy="no",
            save_total_limit=1,
            eval_steps=math.ceil(max(steps / HEAL_JUDGED, HEAL_JUDGED_TOKENS / (HEAL_BATCH * length))),
            logging_steps=max(1, steps // CURVE),
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type != "cpu",
        )
        # the library would take the first GPU, and divide a batch among all that there are
        vars(arguments).update(_setup_devices=device, _n_gpu=min(arguments.n_gpu, 1))
        if device.type != "cpu":
            torch.get_device_module(device).set_device(device)
        trainer = Trainer(
            model=self.model,
            args=arguments,
            data_collator=default_collate,
            train_dataset=self.targets,
            compute_loss_func=lambda output, targets, **_: loss_of(output.logits, *targets),
            callbacks=[self],
            optimizers=(_optimizer(self.model, spec.heal.learning_rate), None),
        )
        trainer.loss_is_scaled_for_ga = False  # it is the mean of a part of a batch
        of_text.use_cache = False
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=checkpoint)
        done = self._tokens(trainer.state.global_step) - self._tokens(first)
        course = Course.of(trainer.state, parameters=parameters)
        return replace(course, tokens_per_second=done / self._stepping)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._began, self._judging = time.monotonic(), 0.0
        if state.global_step == 0:
            self._judge(state)
        self._began, self._judging = time.monotonic(), 0.0
        self._saved = self._began

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._stepping = time.monotonic() - self._began - self._judging  # until the last step: not what is saved then
        part = state.global_step / state.max_steps
        self.run.clock.progress.advance(TARGETS_PART + TRAINING_PART * part)
        is_over = self._budget is not None and self._seconds >= self._budget
        if is_over and not control.should_training_stop:
            self._end(state, control, f"its time budget of {self._budget:g} seconds was used up")
        if control.should_training_stop or state.global_step % state.eval_steps == 0:
            self._judge(state)
            course = Course.of(state)
            if len(course.judged) - 1 - course.best >= HEAL_MISSES and not control.should_training_stop:
                self._end(state, control, f"the panel had not become better {HEAL_MISSES} times in a row")
        if control.should_training_stop or time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
            control.should_save, self._saved = True, time.monotonic()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        if "loss" in more["logs"]:
            loss = float(more["logs"]["loss"])
            self._note(state, _LOSS, loss, loss=loss)
            if not math.isfinite(loss):
                self._end(state, control, "its loss was no number")

    def _tokens(self, step: int) -> int:
        """Tokens that were read by the end of a step; the last one may have fewer sequences."""
        return min(step * HEAL_BATCH, len(self.targets)) * self.targets.tokens.shape[1]

    @property
    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _note(self, state: TrainerState, metric: str, nats: float, **found: object) -> None:
        """Report the metric, and keep what was `found` under its name."""
        tokens = self._tokens(state.global_step)
        self.run.clock.progress.metric(metric, nats, "nats", candidate=counted(tokens, "tokens"))
        row: dict[str, Any] = {metric: {"tokens": tokens, **found}}
        state.log_history.append(row)

    def _end(self, state: TrainerState, control: TrainerControl, why: str) -> None:
        row: dict[str, Any] = {_ENDED: why}
        state.log_history.append(row)
        control.should_training_stop = True

    def _judge(self, state: TrainerState) -> None:
        """Judge the model, and keep it if it is the best one so far."""
        began, dtype = time.monotonic(), self.run.dtype
        self.model.eval()  # a step puts it into training mode itself
        with torch.autocast(self.model.device.type, dtype, enabled=dtype is not torch.float32):
            panel, losses = panel_of(self.model, self.tokens)
        mean, sources = panel.mean(losses), dict(panel.by_source(losses))
        self._note(state, _JUDGED, mean, seconds=self._seconds, mean=mean, sources=sources)
        course = Course.of(state)
        if state.global_step and course.best == len(course.judged) - 1:
            weights = {name: one.detach() for name, one in self.model.named_parameters() if one.requires_grad}
            draft = self.place / f"draft.{BEST}"
            save_file({name: weight.contiguous() for name, weight in weights.items()}, draft)
            draft.replace(self.place / BEST)
        self._judging += time.monotonic() - began


def _optimizer(model: PreTrainedModel, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW, whose step does not know how large a weight is: each gets a learning rate in proportion to its size, the
    root mean square of its values (as arXiv 1804.04235, section 8)."""
    groups = []
    for weight in model.parameters():
        if weight.requires_grad:
            size = max(float(weight.detach().square().mean().sqrt()), _LEAST_SIZE)
            groups.append({"params": [weight], "lr": learning_rate / HEAL_WEIGHT_SIZE * size})
    return torch.optim.AdamW(groups, betas=_BETAS, weight_decay=0.0)


def _last_checkpoint(place: Path) -> tuple[str | None, TrainerState]:
    """The newest complete checkpoint, and its state. What is newer is removed.

    The last file of a checkpoint is its state. The library removes the checkpoint before it only then.
    """
    found = place.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        with suppress(OSError, ValueError):
            return str(path), TrainerState.load_from_json(str(path / TRAINER_STATE_NAME))
        shutil.rmtree(path)
    return None, TrainerState()
