"""How much of a job is done and how long it will take, from weights of the stages and the elapsed time."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from replaceme_core.request.gate import most_trials
from replaceme_core.request.method import TRAITS, Method, Selection
from replaceme_core.request.removal import blocks_to_remove
from replaceme_core.request.resolve import usual_size
from replaceme_core.request.spec import CompressionSpec
from replaceme_core.request.tasks import task_tokens
from replaceme_core.runner.messages import Stage

PASS = 60.0
"""The weight of one pass over the calibration text."""
# shares of a job's wall time on SmolLM2-135M at the defaults of a CPU; only their proportions matter
_WEIGHTS: Mapping[Stage, float] = {
    Stage.RESOLVE: 1,
    Stage.DOWNLOAD: 5,
    Stage.CALIBRATE: PASS,
    Stage.SELECT: 17,
    Stage.SOLVE: 1,
    Stage.FOLD: 1,
    Stage.HEAL: 0,
    Stage.SAVE: 4,
    Stage.EVALUATE: 35,
    Stage.PUBLISH: 3,
}
USUAL_BLOCKS = 32
"""Of a model of which nothing is known yet."""
DOUBT = 0.5
"""How far the speed so far is doubted, as a part of the plan."""
PART_OF_SILENCE = 0.25
"""A stage that is overdue is expected to take this part of the time for which it has reported nothing."""
LEAST_ERROR = 0.15
"""Of an estimate, as a part of it."""
_MOST_ESTIMATES = 256

HEAL_PASSES = 6
"""What healing takes for each token, in passes of the calibration over one token: generating, running the original,
and training."""
_GENERATION = 120.0
"""The weight of generating all samples, which is done before they calibrate."""


def writing_part(spec: CompressionSpec) -> float:
    """The part of `calibrate` in which the model generates text, 0 to 1."""
    return _generation_weight(spec) / (_generation_weight(spec) + PASS)


def _generation_weight(spec: CompressionSpec) -> float:
    return _GENERATION * spec.calibration.generated_share


def weights_of(spec: CompressionSpec, *, blocks: int = USUAL_BLOCKS) -> Mapping[Stage, float]:
    """The stages of this job in order, each with a weight that is proportional to its expected time.

    The number of `blocks` of the model says how many trials a search for the deepest cut has.
    """
    trials = most_trials(blocks_to_remove(spec.greatest_ratio or 0.0, blocks)) if spec.searches else 0
    return with_tasks_and_trials(weights_of_one_cut(spec), spec, of_token=_token_weight(spec), trials=trials)


def weights_of_one_cut(spec: CompressionSpec) -> dict[Stage, float]:
    """The same for a job that tries one depth, without tasks."""
    of_method = {Stage(name): weight for name, weight in TRAITS[spec.expected_method].stage_weights.items()}
    weights = {**_WEIGHTS, **of_method}
    weights[Stage.CALIBRATE] += _generation_weight(spec)
    if spec.drop is not None or spec.method.selection is Selection.WINDOW:
        weights[Stage.SELECT] = _WEIGHTS[Stage.SELECT]
    if spec.drop is not None and spec.expected_method is Method.AUTO:
        weights[Stage.SOLVE] /= 2  # where it chooses them, it refits several sets of blocks on a part of the text
    if not spec.evaluation.enabled:
        del weights[Stage.EVALUATE]
    if spec.heal is None:
        del weights[Stage.HEAL]
    else:
        weights[Stage.HEAL] = HEAL_PASSES * spec.heal.tokens * _token_weight(spec)
    return weights


def _token_weight(spec: CompressionSpec) -> float:
    """Of reading one token."""
    samples, length = usual_size(spec, on_cpu=True)
    return PASS / (samples * length)


def with_tasks_and_trials(
    stages: Mapping[Stage, float], spec: CompressionSpec, *, of_token: float, trials: int
) -> dict[Stage, float]:
    """The times of a job, from those of one for one ratio without tasks; `of_token` is the time of reading one token.

    Of a search, `select` has all trials. Each trial solves, folds, saves and measures its result, in the tasks too; the
    source model is measured once. What is left for the stages after that is to carry out the decision that was found,
    and to measure speed.
    """
    found, asked = dict(stages), spec.evaluation
    if Stage.EVALUATE in found:
        read = task_tokens(asked.tasks, limit=asked.task_limit, few_shot=asked.few_shot)
        found[Stage.EVALUATE] += 2 * read * of_token  # by the original and by the pruned model
    if not trials:
        return found
    measuring = found[Stage.EVALUATE] / 2
    each = measuring + sum(found[stage] for stage in (Stage.SELECT, Stage.SOLVE, Stage.FOLD, Stage.SAVE))
    return found | {
        Stage.SELECT: trials * each + measuring,
        Stage.SOLVE: 0.0,
        Stage.EVALUATE: stages[Stage.EVALUATE] / 2,
    }


@dataclass
class Course:
    """Progress through the stages. It never decreases, even if a stage is entered twice.

    `started` and every `now` are seconds of the same monotonic clock. `weights` are proportional to the expected times
    of the stages, until `expect` gives these in seconds.
    """

    weights: Mapping[Stage, float]
    started: float
    stage: Stage = Stage.RESOLVE
    fraction: float = 0.0
    overall: float = field(default=0.0, init=False)
    """The part of the whole job that is done, 0 to 1."""
    _done: float = field(default=0.0, init=False)
    _moved_at: float = field(init=False)
    _measured_from: tuple[float, float] = field(init=False)
    """When the speed began to be measured, and what was done then."""
    _doubt: float = field(default=0.0, init=False)
    """Seconds for which the job is taken to have kept to its plan before; 0 without a plan."""
    _overdue: float = field(default=0.0, init=False)
    _estimates: list[tuple[float, float]] = field(default_factory=list, init=False)
    """Pairs of elapsed seconds and the seconds that the whole was then expected to take."""

    def __post_init__(self) -> None:
        self._moved_at = self.started
        self._measured_from = self.started, 0.0

    def expect(self, seconds: Mapping[Stage, float], now: float) -> None:
        """From now on the stages are expected to take these `seconds`; those without are no part of the job."""
        self.weights = {stage: seconds[stage] for stage in self.weights if stage in seconds}
        self._doubt = DOUBT * sum(self.weights.values())
        self._done = 0.0
        self._estimates.clear()
        self.move(self.stage, self.fraction, now)
        self._measured_from = now, self._done

    def move(self, stage: Stage, fraction: float, now: float, *, resumed: bool = False) -> None:
        """Set the position to `fraction` of `stage`; it is clamped to the range 0 to 1.

        `resumed`: an earlier attempt has done what comes before, so that it took no time.
        """
        self.stage = stage
        self.fraction = min(max(fraction, 0.0), 1.0) if fraction == fraction else 0.0
        self._moved_at = now
        if stage in self.weights:
            order = list(self.weights)
            before = sum(self.weights[each] for each in order[: order.index(stage)])
            self._done = max(self._done, before + self.weights[stage] * self.fraction)
            self.overall = max(self.overall, self._done / sum(self.weights.values()))
        if resumed:
            self._measured_from = now, self._done

    def eta_seconds(self, now: float) -> float | None:
        """Seconds until the end, between the plan and the speed so far; `None` until `expect` gives the plan: how long
        a download took says nothing about the rest.

        In a stage that reports nothing it falls until the end of that stage is due, and grows from then on.
        """
        if not self._doubt:
            return None
        elapsed = now - self.started
        began, done = self._measured_from
        factor = (self._moved_at - began + self._doubt) / (self._done - done + self._doubt)
        left = sum(self.weights.values()) - self._done
        of_stage = min(self.weights.get(self.stage, 0.0) * (1 - self.fraction), left)
        silence = now - self._moved_at
        self._overdue = max(silence - factor * of_stage, 0.0)
        expected = max(factor * of_stage - silence, silence * PART_OF_SILENCE) + factor * (left - of_stage)
        self._estimates.append((elapsed, elapsed + expected))
        if len(self._estimates) > _MOST_ESTIMATES:  # every second one is enough to see how they move
            del self._estimates[:-1:2]
        return expected

    def eta_error_seconds(self) -> float | None:
        """How far the last `eta_seconds` may be off, in seconds; `None` before there is one.

        As far as the expected end will move until then, if it goes on moving as in the second half of the time so far.
        The first half does not count, since a start says little about the rest. At least a part of the estimate, and
        as long as the present stage is overdue.
        """
        if not self._estimates:
            return None
        elapsed, present = self._estimates[-1]
        left = present - elapsed
        moved = max(abs(expected - present) for at, expected in self._estimates if at >= elapsed / 2)
        return max(moved * max(left / (elapsed / 2 + self._doubt), 1.0), left * LEAST_ERROR, self._overdue)
