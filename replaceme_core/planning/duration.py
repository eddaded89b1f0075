"""The expected time of each stage, in seconds: a stated model, corrected by what earlier jobs took where any ran.

The model: one pass over the calibration tokens takes 2 FLOP for each parameter and token at the rate of the worker
kind; the stages take multiples of a pass, by the weights from which progress is computed (`runner.eta`); copying takes
the bytes over a rate. Earlier jobs on the same kind of worker say by which factor it is wrong there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from replaceme_core.admission.worker_kind import WorkerKind
from replaceme_core.gate.task_sizes import task_tokens
from replaceme_core.method_traits import Method
from replaceme_core.planning.model_shape import ModelShape
from replaceme_core.planning.workload import Workload
from replaceme_core.runner.eta import MODELS, weights_of_one_cut, with_tasks_and_trials, writing_part
from replaceme_core.runner.messages import Stage
from replaceme_core.spec import CompressionSpec

FLOP_PER_SECOND: Mapping[WorkerKind, float] = {WorkerKind.CPU: 1e11, WorkerKind.GPU: 1e14}
NETWORK_BYTES_PER_SECOND = 5e7
DISK_BYTES_PER_SECOND = 2e8
START_SECONDS = 10.0
"""Starting the runner and importing its libraries."""
_COPIES = (Stage.DOWNLOAD, Stage.PUBLISH)


class Basis(StrEnum):
    """What an expected time rests on."""

    MEASURED = "measured"
    """What earlier jobs on this kind of worker took, relative to the model."""
    MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Rates:
    """By stage: how many times as long as the model says earlier jobs took, the median of `jobs` jobs."""

    factors: Mapping[Stage, float]
    jobs: int = 0


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Seconds by stage in the order of the job, and what they rest on; `modelled` by the model alone."""

    stages: Mapping[Stage, float]
    modelled: Mapping[Stage, float]
    basis: Basis
    jobs: int

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())


def modelled_seconds(
    shape: ModelShape, work: Workload, *, download: int, write: int, is_remote: bool
) -> dict[Stage, float]:
    """The seconds of each stage by the model alone. `download` and `write` are bytes.

    `is_remote`: the Hub is reached over a network; else nothing is downloaded.
    """
    one_pass = 2.0 * sum(shape.block_values) * work.tokens / FLOP_PER_SECOND[work.kind]
    weights = weights_of_one_cut(work.spec)
    of_pass = one_pass / _pass_weight(weights, work.spec)
    found = {stage: weight * of_pass for stage, weight in weights.items()}
    del found[Stage.RESOLVE]
    found[Stage.CALIBRATE] += START_SECONDS
    budget = work.spec.method.time_budget_seconds
    if work.method is Method.AUTO and budget is not None:
        share = min(1.0, budget / (found[Stage.SELECT] + found[Stage.SOLVE]))
        found |= {stage: found[stage] * share for stage in (Stage.SELECT, Stage.SOLVE)}
    if Stage.EVALUATE in found:  # on its own number of tokens, whatever the calibration has
        found[Stage.EVALUATE] *= max(1, work.measured) * 4 / work.sequences
    reading = shape.parameters * shape.item_bytes / DISK_BYTES_PER_SECOND
    found[Stage.CALIBRATE] += reading
    found[Stage.SAVE] += 3 * write / DISK_BYTES_PER_SECOND
    asked = work.spec.evaluation
    read = MODELS * task_tokens(asked.tasks, limit=asked.task_limit, few_shot=asked.few_shot)
    found = with_tasks_and_trials(found, tasks=one_pass * read / work.tokens, trials=work.trials)
    found[Stage.SELECT] += 2 * work.trials * reading  # the weights as they are stored, and the result
    found[Stage.DOWNLOAD] = download / NETWORK_BYTES_PER_SECOND if is_remote else 0.0
    found[Stage.PUBLISH] = write / (NETWORK_BYTES_PER_SECOND if is_remote else DISK_BYTES_PER_SECOND)
    return {stage: found[stage] for stage in Stage if stage in found}


def _pass_weight(weights: Mapping[Stage, float], spec: CompressionSpec) -> float:
    """The part of the weight of `calibrate` that is the pass, not the text that the model generates before it."""
    return weights[Stage.CALIBRATE] * (1 - writing_part(spec))


def expected_duration(modelled: Mapping[Stage, float], rates: Rates) -> Duration:
    """`modelled` seconds, corrected by the `rates` of earlier jobs; a stage that none had gets the usual factor."""
    if not rates.factors:
        return Duration(stages=modelled, modelled=modelled, basis=Basis.MODEL, jobs=0)
    usual = sorted(rates.factors.values())[len(rates.factors) // 2]
    stages = {
        stage: seconds if stage in _COPIES else seconds * rates.factors.get(stage, usual)
        for stage, seconds in modelled.items()
    }
    return Duration(stages=stages, modelled=modelled, basis=Basis.MEASURED, jobs=rates.jobs)
