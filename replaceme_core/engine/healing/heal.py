"""The stage `heal`: what the original predicts is written down, the pruned model is trained toward it, and judged.

The result is never worse than without: the pruned model that came out of the closed forms stays unless the trained one
is better on the panel by more than a standard error.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from replaceme_core.engine.activations.cache import code_digest, file_digest
from replaceme_core.engine.activations.capture import Losses
from replaceme_core.engine.activations.verified_file import content_digest
from replaceme_core.engine.healing.targets import HealingText, Targets, write_targets, write_whole
from replaceme_core.engine.methods.panel import Panel
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.lazy_model import open_model
from replaceme_core.engine.model.load import load_config
from replaceme_core.engine.model.save import save_model
from replaceme_core.engine.run import Run
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.errors import InvalidInput
from replaceme_core.families.resolve import part_config, resolve
from replaceme_core.hub.model_files import INDEX, weight_files
from replaceme_core.library_errors import is_out_of_memory, is_out_of_space, require_space
from replaceme_core.request.defaults import TARGET_BYTES
from replaceme_core.request.removal import runs_of
from replaceme_core.request.resolve import HEALED_BYTES
from replaceme_core.request.spec import Loading
from replaceme_core.runner.messages import describe
from replaceme_core.wording import json_safe

if TYPE_CHECKING:
    from replaceme_core.engine.healing.training import Course

logger = logging.getLogger(__name__)
PanelOf = Callable[[PreTrainedModel, TokenSet], tuple[Panel, Losses]]
TARGETS_PART, TRAINING_PART = 0.35, 0.6
"""Of the time of the stage; the rest is for judging."""


@dataclass(frozen=True, kw_only=True)
class Healing:
    """What healing came to. `is_kept`: the trained model is the result; else `problem` says why it is not.

    `tokens` were trained on, of `sequences`; `parameters` is the number of values that were trained, `weights` says
    which. `losses` are those of the training, each with the number of `tokens` until then. `judged` has the panel each
    time, and `panel` the loss of the three models on each of its sources, both in nats.
    """

    is_kept: bool
    problem: str | None
    ended_early: str | None
    tokens: int
    sequences: int
    parameters: int
    weights: str
    learning_rate: float
    tokens_per_second: float | None
    losses: Sequence[Mapping[str, float]]
    judged: Sequence[Mapping[str, object]]
    panel: Sequence[Mapping[str, object]]

    def as_dict(self) -> dict[str, object]:
        """For JSON, in which a number that is not finite is a text."""
        found = json_safe(asdict(self), name=str)
        assert isinstance(found, dict)
        return found


def require_training() -> None:
    """Raise `InvalidInput` where the library that trains is not installed."""
    if find_spec("accelerate") is None:
        raise InvalidInput(
            "healing needs a library that this worker does not have (accelerate); install it with: "
            "pip install 'replaceme[heal]'",
            field="heal",
        )


def heal(run: Run, output: Path, tokens: TokenSet, *, text: HealingText, removed: Sequence[int]) -> Healing:
    """Train the pruned model in `output`, without the blocks `removed`; what is better takes its place there."""
    with torch.inference_mode(mode=False), _place(run, output, tokens, text) as place:
        return _Stage(run=run, output=output, tokens=tokens, text=text, removed=removed, place=place).carry_out()


@contextmanager
def _place(run: Run, output: Path, tokens: TokenSet, text: HealingText) -> Iterator[Path]:
    """Where targets and checkpoints are: beside those of the job, for its next attempt, if there is such a place."""
    facts = {
        "spec": run.spec.model_dump(mode="json", include={"model", "heal", "calibration", "compute"}),
        "weights": [file_digest(path) for path in weight_files(output)],
        "code": code_digest(),
        "versions": [version(one) for one in ("replaceme", "torch", "transformers", "accelerate")],
    }
    decisive = [("fit", tokens.fit), ("held_out", tokens.held_out), ("measure", tokens.measure)]
    if run.checkpoints is not None:
        place = run.checkpoints / f"heal-{content_digest(facts, decisive)[:16]}"
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("checkpoints cannot be written: %s", error)
        else:
            yield place
            return
    with TemporaryDirectory(prefix=f".{run.output.name}.heal-", dir=run.output.parent) as scratch:
        yield Path(scratch)


@dataclass(frozen=True, kw_only=True)
class _Stage:
    run: Run
    output: Path
    tokens: TokenSet
    text: HealingText
    removed: Sequence[int]
    place: Path

    def carry_out(self) -> Healing:
        from replaceme_core.engine.healing.training import Course, panel_of  # it imports the library that trains

        heal, progress = self.run.spec.heal, self.run.clock.progress
        assert heal is not None
        require_space(self.place, self._disk_bytes(), purpose="healing")
        targets, original = self._targets(), self._original_losses(panel_of)
        self.run.release()
        course, parameters, problem = Course(), 0, None
        with TemporaryDirectory(prefix=f".{self.output.name}.healed-", dir=self.output.parent) as there:
            healed = Path(there)
            try:
                course, parameters = self._train(targets)
                release_memory()
                if course.best > 0:
                    self._save_best(healed)
                else:
                    problem = "no state of the training was better on the panel"
            except Exception as error:
                if not (is_out_of_memory(error) or is_out_of_space(error)):
                    raise
                problem = describe(error).message
            release_memory()
            progress.advance(TARGETS_PART + TRAINING_PART)
            panel, before = panel_of(self._opened(self.output), self.tokens)
            after: Losses | None = None
            if problem is None:
                panel, after = panel_of(self._opened(healed), self.tokens)
                if not panel.is_worse(before, after):
                    problem = "the trained model is not better on the panel by more than a standard error"
            if problem is None:
                for path in (*weight_files(self.output), self.output / INDEX):
                    path.unlink(missing_ok=True)  # the new weights may be split into other files
                for path in healed.iterdir():
                    path.replace(self.output / path.name)
        release_memory()
        return Healing(
            is_kept=problem is None,
            problem=problem,
            ended_early=course.ended_early,
            tokens=course.judged[-1]["tokens"] if course.judged else 0,
            sequences=len(targets),
            parameters=parameters,
            weights=str(heal.weights),
            learning_rate=heal.learning_rate,
            tokens_per_second=course.tokens_per_second,
            losses=course.losses,
            judged=course.judged,
            panel=list(_rows(panel, original, before, after)),
        )

    def _targets(self) -> Targets:
        run = self.run
        assert run.tokenizer is not None
        return write_targets(
            self.place,
            self.text,
            open_original=self._original,
            tokenizer=run.tokenizer,
            vocabulary=part_config(load_config(run.source)).vocab_size,
            advance=lambda part: run.clock.progress.advance(TARGETS_PART * part),
        )

    def _original(self) -> PreTrainedModel:
        """The original model, which is held until the training."""
        if self.run.model is None:
            self.run.model = self._opened(self.run.source)
        return self.run.model

    def _original_losses(self, panel_of: PanelOf) -> Mapping[str, float]:
        """Those of the original model on the panel, by source; an earlier attempt may have left them."""
        known = self.place / "original.json"
        if not known.exists():
            panel, losses = panel_of(self._original(), self.tokens)
            write_whole(known, json.dumps(dict(panel.by_source(losses))))
        found: Mapping[str, float] = json.loads(known.read_text())
        return found

    def _opened(self, directory: Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
        with self.run.clock.loading():
            return open_model(
                directory, dtype=dtype or self.run.dtype, device=self.run.spec.compute.device, loading=Loading.WHOLE
            )

    def _train(self, targets: Targets) -> tuple["Course", int]:
        """Train; also the number of values that are trained."""
        from replaceme_core.engine.healing.training import Training, choose_weights

        run, progress = self.run, self.run.clock.progress
        assert run.spec.heal is not None
        model = self._opened(self.output, dtype=torch.float32)
        cuts = [first - sum(block < first for block in self.removed) for first, _ in runs_of(self.removed)]
        choose_weights(resolve(model), run.spec.heal.weights, cuts=cuts)
        training = Training(
            run=run,
            model=model,
            targets=targets,
            tokens=self.tokens,
            place=self.place,
            advance=lambda part: progress.advance(TARGETS_PART + TRAINING_PART * part),
        )
        return training.train(), sum(one.numel() for one in model.parameters() if one.requires_grad)

    def _save_best(self, healed: Path) -> None:
        """Save the best state in `healed`, each weight in the dtype that it is loaded with: what the class computes in
        float32, such as biases that choose experts, stays so."""
        from replaceme_core.engine.healing.training import BEST

        model = self._opened(self.output, dtype=self.run.stored.dtype)
        with torch.no_grad():
            for name, weight in load_file(self.place / BEST, device=str(model.device)).items():
                model.get_parameter(name).copy_(weight)
        save_model(model, healed, source=self.run.source)

    def _disk_bytes(self) -> int:
        """Of the targets, two checkpoints, the best state and the result, at most."""
        weights = sum(path.stat().st_size for path in weight_files(self.output))
        values = weights // self.run.stored.dtype.itemsize
        return self.text.count * self.text.length * TARGET_BYTES + 2 * HEALED_BYTES * values + weights


def _rows(
    panel: Panel, original: Mapping[str, float], before: Losses, after: Losses | None
) -> Iterator[Mapping[str, object]]:
    healed = {} if after is None else dict(panel.by_source(after))
    for name, loss in panel.by_source(before):
        yield {"name": name, "original": original[name], "closed_form": loss, "healed": healed.get(name)}
