"""The stage `heal`: what the original predicts is written down, the pruned model is trained toward it, and judged.

The result is never worse than without: the pruned model that came out of the closed forms stays unless the trained one
is better on the panel by more than a standard error.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

from replaceme_core.engine.activations.cache import file_digest
from replaceme_core.engine.activations.capture import Losses
from replaceme_core.engine.activations.verified_file import content_digest
from replaceme_core.engine.healing.targets import HealingText, Targets, original_of, write_targets, write_whole
from replaceme_core.engine.healing.training import BEST, Course, Training, choose_weights, panel_of
from replaceme_core.engine.model.allocator import release_memory
from replaceme_core.engine.model.save import save_model
from replaceme_core.engine.run import Run
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.families.resolve import resolve
from replaceme_core.hub.model_files import INDEX, weight_files
from replaceme_core.library_errors import is_out_of_memory, is_out_of_space, require_space
from replaceme_core.request.defaults import TARGET_BYTES
from replaceme_core.request.removal import runs_of
from replaceme_core.request.resolve import HEALED_BYTES
from replaceme_core.runner.messages import describe
from replaceme_core.wording import json_safe

logger = logging.getLogger(__name__)
TARGETS_PART, TRAINING_PART = 0.35, 0.6
"""Of the time of the stage; the rest is for judging."""


def heal(
    run: Run, output: Path, tokens: TokenSet, *, text: HealingText, removed: Sequence[int]
) -> Mapping[str, object]:
    """Train the pruned model in `output`, without the blocks `removed`; what is better takes its place there.

    Returns what healing came to, for the report: `is_kept` if the trained model is the result, else `problem` says why
    it is not. `tokens` were trained on, of `sequences`; `parameters` is the number of values that were trained,
    `weights` says which. `losses`, `judged`, `ended_early` and `tokens_per_second` are those of the `Course`; `panel`
    has the loss of the three models on each source of the panel, in nats.
    """
    asked, progress = run.spec.heal, run.clock.progress
    assert asked is not None
    with (
        torch.inference_mode(mode=False),
        TemporaryDirectory(prefix=f".{run.output.name}.heal-", dir=output.parent) as scratch,
    ):
        key = content_digest(
            [text.key, version("accelerate"), [file_digest(path) for path in weight_files(output)]], []
        )
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
            write_whole(known, json.dumps(dict(panel.by_source(losses))))
        original = json.loads(known.read_text())
        run.release()
        course, parameters, problem = Course(), 0, None
        try:
            course, parameters = _train(run, output, tokens, targets, removed=removed, place=place)
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
            for path in healed.iterdir():
                path.replace(output / path.name)
    release_memory()
    by_source = {} if after is None else dict(panel.by_source(after))
    found = {
        "is_kept": problem is None,
        "problem": problem,
        "ended_early": course.ended_early,
        "tokens": course.judged[-1]["tokens"] if course.judged else 0,
        "sequences": len(targets),
        "parameters": parameters,
        "weights": str(asked.weights),
        "learning_rate": asked.learning_rate,
        "tokens_per_second": course.tokens_per_second,
        "losses": course.losses,
        "judged": course.judged,
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


def _train(
    run: Run, output: Path, tokens: TokenSet, targets: Targets, *, removed: Sequence[int], place: Path
) -> tuple[Course, int]:
    """Train the model in `output`; also the number of values that are trained."""
    asked, progress = run.spec.heal, run.clock.progress
    assert asked is not None
    model = run.load(output, dtype=torch.float32)
    cuts = [first - sum(block < first for block in removed) for first, _ in runs_of(removed)]
    choose_weights(resolve(model), asked.weights, cuts=cuts)
    training = Training(
        run=run,
        model=model,
        targets=targets,
        tokens=tokens,
        place=place,
        advance=lambda part: progress.advance(TARGETS_PART + TRAINING_PART * part),
    )
    return training.train(), sum(one.numel() for one in model.parameters() if one.requires_grad)


def _save_best(run: Run, output: Path, healed: Path, *, best: Path) -> None:
    """The model in `output` with the weights in the file `best`, each in the dtype that it is loaded with: what the
    class computes in float32, such as biases that choose experts, stays so."""
    model = run.load(output, dtype=run.stored.dtype)
    with torch.no_grad():
        for name, weight in load_file(best, device=str(model.device)).items():
            model.get_parameter(name).copy_(weight)
    save_model(model, healed, source=run.source)
