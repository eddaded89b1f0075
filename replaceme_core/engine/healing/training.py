"""Train a pruned model toward what the original predicts (distillation), and keep it where it is better.

The loss is the divergence from the original's next-token distribution (`targets`). Every so often the model is judged
on the panel, which nothing is trained on; the best state is kept. Weights are in float32 while they are trained, and
computed with in the dtype of the job.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from replaceme_core.engine.activations.capture import Losses
from replaceme_core.engine.activations.cut_sums import Batch
from replaceme_core.engine.healing.targets import Targets, loss_of
from replaceme_core.engine.methods.panel import Panel
from replaceme_core.engine.model.device import free_bytes
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.families.resolve import ResolvedModel
from replaceme_core.request.defaults import (
    HEAL_AROUND,
    HEAL_BATCH,
    HEAL_JUDGED,
    HEAL_JUDGED_TOKENS,
    HEAL_LAST,
    HEAL_MISSES,
    HEAL_WARM_UP,
    HEAL_WEIGHT_SIZE,
)
from replaceme_core.request.resolve import ResolvedHeal, healed_at_once, kept_for_gradients
from replaceme_core.request.spec import HealedWeights

CHECKPOINT_SECONDS = 120.0
"""Between two checkpoints: a lost worker costs at most that time."""
CURVE = 50
"""Points of the curve of the loss."""
_BEST = "best.safetensors"
_PANEL, _ENDED = "panel", "ended"
_DEVICE = "ACCELERATE_TORCH_DEVICE"
_BETAS = (0.9, 0.95)
_LARGEST_NORM = 1.0
_LEAST_SIZE = 1e-3
"""A weight that is zero is trained as if it had this size."""


@torch.inference_mode()
def panel_of(model: PreTrainedModel, tokens: TokenSet) -> tuple[Panel, Losses]:
    """The panel of the held-out sequences of `tokens`, each a batch of its own, and the losses of `model` on it."""
    scored = tokens.held_out_scored
    batches, losses = {}, {}
    for number, row in enumerate(tokens.held_out):
        batch = Batch(
            tokens=row.unsqueeze(0),
            held_out=True,
            source=int(tokens.held_out_sources[number]),
            scored=None if scored is None else scored[number].unsqueeze(0),
        )
        logits = model(input_ids=batch.tokens.to(model.device), use_cache=False).logits[0, :-1]
        known = nn.functional.cross_entropy(logits.float(), row[1:].to(logits.device), reduction="none").cpu()
        counts = torch.ones_like(known) if batch.scored is None else batch.scored[0, 1:]
        batches[number], losses[number] = batch, float((known.double() * counts).sum())
    return Panel(batches=batches, names=tokens.sources), losses


def choose_weights(resolved: ResolvedModel, weights: HealedWeights, *, cuts: Sequence[int]) -> list[str]:
    """Have only the weights that are trained take gradients, and return their names. They are matrices: the values of
    a norm may differ by thousands, and no step suits them all.

    `cuts` are the blocks, as they are numbered now, that follow removed ones.
    """
    model, blocks = resolved.model, len(resolved.blocks)
    inside = set(range(blocks - HEAL_LAST, blocks))
    for cut in cuts:
        inside |= set(range(cut - HEAL_AROUND, cut + HEAL_AROUND))
    parts: list[nn.Module] = [model]
    if weights is HealedWeights.SOME:
        parts = [resolved.blocks[number] for number in sorted(inside) if 0 <= number < blocks]
    trained = {id(parameter) for part in parts for parameter in part.parameters()}
    trained -= {id(one) for one in model.get_input_embeddings().parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained and parameter.ndim > 1)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The panel after `tokens` of training: the mean loss in nats, and that on each source by name.

    `seconds` is the time of training until then.
    """

    tokens: int
    seconds: float
    mean: float
    sources: Mapping[str, float]


@dataclass(kw_only=True)
class Course:
    """What a training came to. Each of `losses` has the `tokens` so far and the mean `loss` since the one before."""

    losses: list[dict[str, float]] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    tokens_per_second: float | None = None
    """Of this attempt; `None` where an earlier one has done all."""
    ended_early: str | None = None
    """Why it ended before all tokens were read, as the end of a sentence."""

    @property
    def best(self) -> int:
        """The number of the best of `judged`, the first of several."""
        return min(range(len(self.judged)), key=lambda number: self.judged[number].mean)


@dataclass(kw_only=True)
class Training:
    """Trains the weights `trained` of `model` (float32) on `targets`; checkpoints are in the directory `place`.

    `dtype` is that of the computation. `tokens` have the panel that judges. `advance` gets the part that is done, and
    `metric` each loss with its number of tokens.
    """

    model: PreTrainedModel
    trained: Sequence[str]
    targets: Targets
    tokens: TokenSet
    heal: ResolvedHeal
    dtype: torch.dtype
    seed: int
    place: Path
    advance: Callable[[float], None]
    metric: Callable[[str, float, int], None]

    def run(self) -> Course:
        """Train, from the last checkpoint if there is one, and leave the best state in `model`.

        It is judged before the first step, too: where nothing is better, it stays as it was.
        """
        steps, device = math.ceil(len(self.targets) / HEAL_BATCH), self.model.device
        of_text = self.model.config.get_text_config()
        at_once = healed_at_once(of_text.vocab_size * self.targets.length)
        os.environ[_DEVICE] = str(device)
        arguments = _Arguments(
            output_dir=str(self.place),
            max_steps=steps,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=HEAL_BATCH // at_once,
            learning_rate=self.heal.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(HEAL_WARM_UP * steps),
            max_grad_norm=_LARGEST_NORM,
            bf16=self.dtype is torch.bfloat16,
            fp16=self.dtype is torch.float16,
            use_cpu=device.type == "cpu",
            seed=self.seed,
            save_strategy="no",
            save_total_limit=1,
            logging_steps=max(1, steps // CURVE),
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type != "cpu",
        )
        _, computed_twice = kept_for_gradients(
            at_once * self.targets.length,
            blocks=of_text.num_hidden_layers,
            width=of_text.hidden_size,
            free=free_bytes(device),
        )
        if computed_twice:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})  # inputs need no gradient
        watch, config = _Watch(self, steps=steps), deepcopy(self.model.config)
        trainer = _Distillation(model=self.model, args=arguments, train_dataset=self.targets, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=_last_checkpoint(self.place))
        self.model.config = config  # the library turns the cache off in it
        course = watch.course
        if course.best > 0:
            best = load_file(self.place / _BEST, device=str(device))
            with torch.no_grad():
                for name, weight in best.items():
                    self.model.get_parameter(name).copy_(weight)
        return course

    def judge(self) -> tuple[float, dict[str, float]]:
        """The mean loss on the panel, in nats, and that on each source by name."""
        self.model.eval()  # a step puts it into training mode itself
        is_mixed = self.dtype is not torch.float32
        with torch.autocast(self.model.device.type, self.dtype, enabled=is_mixed):
            panel, losses = panel_of(self.model, self.tokens)
        return panel.mean(losses), dict(panel.by_source(losses))

    def keep(self) -> None:
        """Keep the present state as the best one."""
        draft = self.place / f"draft.{_BEST}"
        save_file({name: self.model.get_parameter(name).detach().contiguous() for name in self.trained}, draft)
        draft.replace(self.place / _BEST)


class _Arguments(TrainingArguments):
    """On the device of the job: the library would take the first GPU, and divide a batch among all that there are."""

    @cached_property
    def _setup_devices(self) -> torch.device:
        _ = super()._setup_devices
        self._n_gpu, device = min(self._n_gpu, 1), torch.device(os.environ[_DEVICE])
        if device.type != "cpu":
            torch.get_device_module(device).set_device(device)
        return device


class _Distillation(Trainer):
    loss_is_scaled_for_ga = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, whose step does not know how large a weight is: each gets a learning rate in proportion to its size
        (as arXiv 1804.04235, section 8)."""
        rate = self.args.learning_rate / HEAL_WEIGHT_SIZE
        assert self.model is not None
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        groups = [{"params": [weight], "lr": rate * max(_size(weight), _LEAST_SIZE)} for weight in trained]
        self.optimizer = torch.optim.AdamW(groups, betas=_BETAS, weight_decay=0.0)
        return self.optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The divergence from the original, on a part of a batch."""
        return loss_of(model(input_ids=inputs["tokens"].long(), use_cache=False).logits, inputs)


def _size(weight: torch.Tensor) -> float:
    """The root mean square of the values."""
    return float(weight.detach().square().mean().sqrt())


class _Watch(TrainerCallback):
    """Judges the model, keeps its best state, asks for checkpoints, and ends a training that does not help.

    What it knows is in the library's history of the training, which a checkpoint has.
    """

    def __init__(self, training: Training, *, steps: int) -> None:
        self._training, self._steps = training, steps
        self._between = math.ceil(max(steps / HEAL_JUDGED, HEAL_JUDGED_TOKENS / (HEAL_BATCH * training.targets.length)))
        self._before, self._first_step, self._judging, self._was_over = 0.0, 0, 0.0, False
        self._began = self._saved = time.monotonic()
        self.course = Course()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._first_step = state.global_step
        self._read(state)
        self._was_over = self.course.ended_early is not None  # before its worker was lost
        self._before = self.course.judged[-1].seconds if self.course.judged else 0.0
        if not self.course.judged:
            self._judge(state)
        self._began = self._saved = time.monotonic()
        self._judging = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if self._was_over:  # the library takes a step all the same
            control.should_training_stop = True
            return
        budget, seconds = self._training.heal.time_budget_seconds, self._seconds
        self._training.advance(state.global_step / self._steps)
        if budget is not None and seconds >= budget and state.global_step < self._steps:
            self._end(state, control, f"its time budget of {budget:g} seconds was used up")
        is_last = control.should_training_stop or state.global_step >= self._steps
        if is_last or state.global_step % self._between == 0:
            self._judge(state)
            if len(self.course.judged) - 1 - self.course.best >= HEAL_MISSES and not is_last:
                self._end(state, control, f"the panel had not become better {HEAL_MISSES} times in a row")
        if control.should_training_stop or is_last or time.monotonic() - self._saved >= CHECKPOINT_SECONDS:
            control.should_save, self._saved = True, time.monotonic()
        done = self._tokens(state.global_step) - self._tokens(self._first_step)
        self.course.tokens_per_second = done / max(time.monotonic() - self._began - self._judging, 1e-9)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        loss = more["logs"].get("loss")
        if loss is None or self._was_over:
            return
        tokens = self._tokens(state.global_step)
        self.course.losses.append({"tokens": tokens, "loss": float(loss)})
        self._training.metric("heal_loss", float(loss), tokens)
        if not math.isfinite(float(loss)):
            self._end(state, control, "its loss was no number")

    def _tokens(self, step: int) -> int:
        """Tokens that were read by the end of a step; the last one may have fewer sequences."""
        return min(step * HEAL_BATCH, len(self._training.targets)) * self._training.targets.length

    @property
    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _end(self, state: TrainerState, control: TrainerControl, why: str) -> None:
        control.should_training_stop, self.course.ended_early = True, why
        history: list[dict[str, Any]] = state.log_history
        history.append({_ENDED: why, "step": state.global_step})

    def _read(self, state: TrainerState) -> None:
        """What a checkpoint knows."""
        history: list[dict[str, Any]] = state.log_history
        for row in history:
            if "loss" in row:
                tokens = self._tokens(int(row["step"]))
                self.course.losses.append({"tokens": tokens, "loss": float(row["loss"])})
            elif _PANEL in row:
                self.course.judged.append(Judged(**row[_PANEL]))
            elif _ENDED in row:
                self.course.ended_early = row[_ENDED]

    def _judge(self, state: TrainerState) -> None:
        began = time.monotonic()
        mean, sources = self._training.judge()
        tokens = self._tokens(state.global_step)
        found = Judged(tokens=tokens, seconds=self._seconds, mean=mean, sources=sources)
        self.course.judged.append(found)
        history: list[dict[str, Any]] = state.log_history
        history.append({_PANEL: asdict(found), "step": state.global_step})
        self._training.metric("heal_panel_loss", mean, tokens)
        if state.global_step and self.course.best == len(self.course.judged) - 1:
            self._training.keep()
        self._judging += time.monotonic() - began


def _last_checkpoint(place: Path) -> str | None:
    """The newest complete checkpoint. Others are removed."""
    found = sorted(place.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    complete = [path for path in found if _is_complete(path)]
    for path in found:
        if path not in complete[-1:]:
            shutil.rmtree(path)
    return str(complete[-1]) if complete else None


def _is_complete(checkpoint: Path) -> bool:
    """Whether the last of its files is there in full. The library removes the checkpoint before it only then."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
