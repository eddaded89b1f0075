"""Tasks on tiny models, and what a method's answer comes to when it is carried out."""

import torch
from transformers import PreTrainedModel

from replaceme_core.calibration.packing import TokenSet
from replaceme_core.families.resolve import resolve
from replaceme_core.methods.protocol import Pruning, Task
from replaceme_core.methods.table import METHODS
from replaceme_core.modeling.blockwise import BlockwiseModel
from replaceme_core.modeling.captured import Captured
from replaceme_core.modeling.changes import apply_changes
from replaceme_core.modeling.streams import MemoryStreams
from replaceme_core.modeling.surgery import fold, remove_blocks, scale_final_norm
from replaceme_core.progress import Stage
from replaceme_core.spec import CompressionSpec
from replaceme_core.stages import StageClock
from tests.recorder import Recorder


def sampled(model: PreTrainedModel, sequences: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Text of the model's own (sequences, length): a random model predicts no other, and any change costs it loss."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 256, (sequences, 1), generator=generator)
    with torch.inference_mode():
        for _ in range(length - 1):
            likely = model(input_ids=tokens, use_cache=False).logits[:, -1, :256].softmax(dim=-1)
            tokens = torch.cat([tokens, torch.multinomial(likely, 1, generator=generator)], dim=1)
    return tokens


def make_task(
    model: PreTrainedModel,
    *,
    remove: int = 2,
    fit: torch.Tensor,
    held_out: torch.Tensor,
    keep: bool = False,
    **fields: object,
) -> tuple[Task, Recorder]:
    """`fields` are those of the specification; `drop` takes the place of `remove`. With `keep` streams are kept."""
    drop = fields.get("drop")
    body: dict[str, object] = {
        "model": {"repo_id": "org/tiny"},
        "calibration": {"dataset": "builtin:pydoc-topics"},
        "compute": {"batch_size": 4},
        **({} if drop else {"ratio": 0.5}),
        **fields,
    }
    heard = Recorder()
    clock = StageClock(progress=heard, device=torch.device("cpu"))
    clock.begin(Stage.CALIBRATE)
    blockwise = BlockwiseModel(resolved=resolve(model))
    task = Task(
        blockwise=blockwise,
        tokens=TokenSet(fit=fit, held_out=held_out, measure=held_out),
        captured=Captured(
            blockwise=blockwise,
            fit=fit,
            held_out=held_out,
            batch_size=4,
            advance=heard.advance,
            streams=MemoryStreams() if keep else None,
        ),
        spec=CompressionSpec.model_validate(body),
        remove=len(drop) if isinstance(drop, list) else remove,
        clock=clock,
    )
    return task, heard


@torch.inference_mode()
def carry_out(task: Task) -> Pruning:
    return METHODS[task.spec.method.name](task)


@torch.inference_mode()
def operate(model: PreTrainedModel, pruning: Pruning) -> PreTrainedModel:
    """`model` after the surgery that `pruning` asks for, as the pipeline does it."""
    resolved = resolve(model)
    for one in pruning.folds:
        fold(resolved, one)
    apply_changes(resolved, pruning.changes)
    scale_final_norm(resolved, pruning.final_scale)
    remove_blocks(resolved, list(pruning.removed))
    return model


@torch.inference_mode()
def mean_loss(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """Next-token loss in nats, by the model's own forward pass."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()))
