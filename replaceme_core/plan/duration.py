"""The expected time of each stage, in seconds: a stated model, fitted to what earlier jobs took where any ran.

The model: a stage has a fixed cost, and one that grows with the work. One pass over the calibration tokens takes 2 FLOP
for each token and value of the blocks, without the experts that a token is not routed to, at the rate of the worker
kind; the stages take multiples of a pass, by the weights from which progress is computed (`plan.eta`); copying takes
the bytes over a rate.

The fit: two factors, one on the fixed cost and one on the rest. They begin at 1, and are moved towards four groups of
earlier jobs in turn, each of which is more like the job that is planned: all of them, taken whole (how fast the machine
is); all, at this stage; those whose text came about in the same way, generated or not, seen before or not; and of
these those of the same method.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from replaceme_core.hardware import WorkerKind
from replaceme_core.plan.eta import PASS, weights_of_one_cut, with_tasks_and_trials
from replaceme_core.plan.resources import ModelShape, Workload
from replaceme_core.request import defaults
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.method import Method
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.runner.messages import PastJob, Stage

FLOP_PER_SECOND: Mapping[WorkerKind, float] = {WorkerKind.CPU: 2e11, WorkerKind.GPU: 1e14}
NETWORK_BYTES_PER_SECOND = 5e7
DISK_BYTES_PER_SECOND = 2e8
FIXED_SECONDS: Mapping[Stage, float] = {
    Stage.DOWNLOAD: 8.0,
    Stage.CALIBRATE: 2.0,
    Stage.SELECT: 0.5,
    Stage.SOLVE: 0.5,
    Stage.FOLD: 0.1,
    Stage.HEAL: 5.0,
    Stage.SAVE: 0.5,
    Stage.EVALUATE: 8.0,
    Stage.PUBLISH: 0.5,
}
"""What stages take for a model of no size on two cores. That of `download` is to start the runner, which imports its
libraries then."""
MODELLED = "modelled_seconds"
"""The name of the metric with the time that the model expects of a stage."""

_WRITING = 1.5
"""What generating a token takes, as a multiple of reading it."""
_FADING = 0.95
"""The weight of a job, of that of the job after it: a machine or a release may change."""
_LIKE_SIZE = math.log(4)
"""A stage of four times the size counts half."""
_USUAL_ERROR = 0.5
"""Logarithms further off than this are unusual: the further, the less they count."""
_TRUST = 0.1
"""The weight of where a fit begins, in jobs."""
_FURTHEST = math.log(5)
"""How far one job moves a factor, at most."""
_SHORT_SECONDS = 1.0
"""Times are no more exact: a stage is noticed about once a second."""
_ROUNDS = 20
_REUSED = math.log(1 / 3)
"""By how much the rest of `calibrate` shrinks where an earlier job had the same inputs, until one such job has run: the
cache may have all of it or nothing."""
_FIRST_ERROR = math.log(2.5)
"""The error of the model alone: the usual one of a machine that nothing is known of, and the greatest that is shown."""
_FIRST_WEIGHT = 0.25
"""The weight of that error, in jobs."""
_UNLIKE = 0.25
"""The weight of the error of a job with another method, or whose text came about in another way."""


class Basis(StrEnum):
    """What an expected time rests on."""

    MEASURED = "measured"
    """What earlier jobs on this kind of worker took."""
    MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Seconds by stage in the order of the job, and what they rest on; `modelled` by the model alone.

    The job is expected to take from `low` to `high` seconds.
    """

    stages: Mapping[Stage, float]
    modelled: Mapping[Stage, float]
    low: float
    high: float
    basis: Basis
    jobs: int

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())


def inputs_of(spec: CompressionSpec) -> str:
    """Model and texts of a specification whose calibration is resolved, as a name that is equal for equal ones.

    It tells nobody what they are, but for own text: runners of other owners get it.
    """
    text = spec.calibration
    names = [source.name for source in text.mix]
    facts = json.dumps([spec.model.repo_id, *names, text.max_length, text.seed])
    digest = hashlib.sha256(facts.encode()).hexdigest()
    return f"{digest} {SELF_GENERATED}" if SELF_GENERATED in names else digest


def modelled_copy(stage: Stage, size: int, *, is_remote: bool) -> float:
    """The seconds of `download` or `publish` by the model, for this number of bytes.

    `is_remote`: the Hub is reached over a network; else nothing is downloaded.
    """
    if stage is Stage.DOWNLOAD and not is_remote:
        size = 0
    return FIXED_SECONDS[stage] + size / (NETWORK_BYTES_PER_SECOND if is_remote else DISK_BYTES_PER_SECOND)


def modelled_seconds(
    shape: ModelShape, work: Workload, *, download: int, write: int, is_remote: bool
) -> dict[Stage, float]:
    """The seconds of each stage by the model alone. `download` and `write` are bytes.

    `is_remote`: the Hub is reached over a network; else nothing is downloaded.
    """
    one_pass = 2.0 * shape.computed_values * work.tokens / FLOP_PER_SECOND[work.machine.kind]
    found = {stage: weight * one_pass / PASS for stage, weight in weights_of_one_cut(work.spec).items()}
    del found[Stage.RESOLVE]
    budget = work.spec.method.time_budget_seconds
    if work.method is Method.AUTO and budget is not None:
        share = min(1.0, budget / (found[Stage.SELECT] + found[Stage.SOLVE]))
        found |= {stage: found[stage] * share for stage in (Stage.SELECT, Stage.SOLVE)}
    if Stage.EVALUATE in found:  # on its own number of tokens, whatever the calibration has
        found[Stage.EVALUATE] *= max(1, work.measured) * 4 / work.sequences
    if Stage.HEAL in found:
        found[Stage.HEAL] = _healing_flop(shape, work) / FLOP_PER_SECOND[work.machine.kind]
    reading = shape.parameters * shape.item_bytes / DISK_BYTES_PER_SECOND
    found[Stage.CALIBRATE] += reading
    found[Stage.SAVE] += 3 * write / DISK_BYTES_PER_SECOND
    found = with_tasks_and_trials(found, work.spec, of_token=one_pass / work.tokens, trials=work.trials)
    found[Stage.SELECT] += 2 * work.trials * reading  # the weights as they are stored, and the result
    found = {stage: FIXED_SECONDS[stage] + seconds for stage, seconds in found.items()}
    for stage, size in ((Stage.DOWNLOAD, download), (Stage.PUBLISH, write)):
        found[stage] = modelled_copy(stage, size, is_remote=is_remote)
    return {stage: found[stage] for stage in Stage if stage in found}


def _healing_flop(shape: ModelShape, work: Workload) -> float:
    """Of generating the text, running the original on it, and training: forward, backward, and judging in between."""
    heal = work.spec.heal
    assert heal is not None
    head = 2.0 * shape.vocabulary * shape.width
    original = 2.0 * shape.computed_values + head
    computed = shape.computed_values / sum(shape.block_values)
    pruned = original - 2.0 * computed * (shape.parameters - shape.parameters_after(work.removed))
    generated = 0 if heal.dataset is not None else max(0, heal.tokens - work.samples * work.length)
    often = min(defaults.HEAL_JUDGED, heal.tokens / defaults.HEAL_JUDGED_TOKENS) + 4
    text = work.spec.calibration
    judged = often * (work.held_out + text.beside_samples - text.repeating) * work.length
    return original * (heal.tokens + _WRITING * generated) + pruned * (3 * heal.tokens + judged)


def expected_duration(
    modelled: Mapping[Stage, float], history: Sequence[PastJob], *, method: Method, inputs: str
) -> Duration:
    """`modelled` seconds, fitted to the jobs of `history`, the newest first, for a job of this method and `inputs`."""
    known = any(job.inputs == inputs for job in history)
    prepared = [
        any(job.inputs == one.inputs for one in history[age + 1 :]) == known
        and (SELF_GENERATED in job.inputs) == (SELF_GENERATED in inputs)
        for age, job in enumerate(history)
    ]
    alike = [same and job.method is method for same, job in zip(prepared, history, strict=True)]
    weights = [_FADING**age for age in range(len(history))]
    fit = partial(_fitted, furthest=_FURTHEST * len(history))
    whole = [_total(job.stages.values()) for job in history]
    _, machine = fit((0.0, 0.0), [_Seen(weight, 0.0, *both) for weight, both in zip(weights, whole, strict=True)])
    factors = {}
    for stage, size in modelled.items():
        seen = {}
        for age, job in enumerate(history):
            if stage in job.stages:
                expected, took = job.stages[stage]
                seen[age] = _Seen(weights[age] * _likeness(expected, size), *_parts(stage, expected), took)
        found = fit((machine, machine), list(seen.values()))
        if known and stage is Stage.CALIBRATE:
            found = found[0], found[1] + _REUSED
        for group in (prepared, alike):
            found = fit(found, [one for age, one in seen.items() if group[age]])
        factors[stage] = found

    def fitted(stage: Stage, expected: float) -> float:
        return sum(
            part * math.exp(factor) for part, factor in zip(_parts(stage, expected), factors[stage], strict=True)
        )

    stages = {stage: fitted(stage, size) for stage, size in modelled.items()}
    seconds, trust, errors = sum(stages.values()), _FIRST_WEIGHT, _FIRST_WEIGHT * _FIRST_ERROR
    for age, job in enumerate(history):
        planned, took = _total(
            (fitted(stage, expected), took) for stage, (expected, took) in job.stages.items() if stage in stages
        )
        weight = weights[age] * _likeness(planned, seconds) * (1.0 if alike[age] else _UNLIKE)
        trust += weight
        errors += weight * min(abs(_off(took, planned)), _FIRST_ERROR)
    factor, basis = math.exp(errors / trust), Basis.MEASURED if history else Basis.MODEL
    low, high = seconds / factor, seconds * factor
    return Duration(stages=stages, modelled=modelled, low=low, high=high, basis=basis, jobs=len(history))


class _Seen(NamedTuple):
    """A stage of an earlier job: modelled `fixed` seconds and the `rest`, and the `seconds` that both took together."""

    weight: float
    fixed: float
    rest: float
    seconds: float


def _fitted(start: tuple[float, float], seen: Sequence[_Seen], *, furthest: float) -> tuple[float, float]:
    """The logarithms of the factors on fixed cost and rest that fit what was `seen`, near `start`.

    They are between -`furthest` and `furthest`. Gauss and Newton's method. Errors are relative and have the weights of
    a Cauchy distribution, so that a job which is far from the others counts for little. One with hardly any work says
    little about the factor on the rest.
    """
    fixed_log, rest_log = start
    for _ in range(_ROUNDS if seen else 0):
        fixed_fixed, rest_rest, fixed_rest = _TRUST, _TRUST, 0.0
        fixed_off, rest_off = _TRUST * (start[0] - fixed_log), _TRUST * (start[1] - rest_log)
        fixed_factor, rest_factor = math.exp(fixed_log), math.exp(rest_log)
        for one in seen:
            fixed, rest = one.fixed * fixed_factor, one.rest * rest_factor
            off = _off(one.seconds, fixed + rest)
            weight = one.weight / (1 + (off / _USUAL_ERROR) ** 2)
            whole = fixed + rest + _SHORT_SECONDS
            fixed, rest = fixed / whole, rest / whole
            fixed_fixed += weight * fixed * fixed
            rest_rest += weight * rest * rest
            fixed_rest += weight * fixed * rest
            fixed_off += weight * fixed * off
            rest_off += weight * rest * off
        determinant = fixed_fixed * rest_rest - fixed_rest**2
        fixed_log += (rest_rest * fixed_off - fixed_rest * rest_off) / determinant
        rest_log += (fixed_fixed * rest_off - fixed_rest * fixed_off) / determinant
        fixed_log, rest_log = (min(max(log, -furthest), furthest) for log in (fixed_log, rest_log))
    return fixed_log, rest_log


def _parts(stage: Stage, modelled: float) -> tuple[float, float]:
    """The fixed cost of a stage and the rest."""
    fixed = min(FIXED_SECONDS[stage], modelled)
    return fixed, modelled - fixed


def _total(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The sums of both members."""
    found = list(pairs)
    return sum(first for first, _ in found), sum(second for _, second in found)


def _likeness(one: float, other: float) -> float:
    """Of two sizes in seconds: 1 if they are equal, less the further they are apart."""
    return 1 / (1 + (_off(one, other) / _LIKE_SIZE) ** 2)


def _off(one: float, other: float) -> float:
    """The logarithm of the ratio of two times."""
    return math.log((one + _SHORT_SECONDS) / (other + _SHORT_SECONDS))
