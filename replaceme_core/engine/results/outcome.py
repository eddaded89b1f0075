"""What a run came to: the one value from which report, model card and metrics are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replaceme_core.engine.activations.record import CaptureRecord
from replaceme_core.engine.evaluation.answers import AnswerPair, pair
from replaceme_core.engine.evaluation.compare import Comparison, SpeedChange, TextResult
from replaceme_core.engine.evaluation.gate import judge
from replaceme_core.engine.evaluation.tasks import TaskPair
from replaceme_core.engine.results.base_card import BaseCard
from replaceme_core.engine.results.layer_angles import LayerAngles
from replaceme_core.engine.results.provenance import Provenance
from replaceme_core.engine.results.stage_clock import RunTimes
from replaceme_core.engine.results.warnings import ResultWarning, warnings_of
from replaceme_core.engine.selection.candidate import Candidate
from replaceme_core.plan.plan import Estimate
from replaceme_core.request.gate.result import GateResult
from replaceme_core.request.gate.trials import Trial
from replaceme_core.request.method_traits import MapStructure, Method
from replaceme_core.request.removal import ratio_of
from replaceme_core.request.resolved_spec import ResolvedSpec


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """`method` is the one that was carried out, also where the request left it open (`auto`).

    `structure` is that of the maps that this model takes. `imported_bytes` is the resident memory before anything was
    loaded. `comparison` is `None` where nothing was measured. `is_chat`: the tokenizer has a chat template.
    `layer_angles` are `None` where they were not computed.
    `irregular` are the lists of the config that follow no step (`families.patterns.irregular_lists`). `planned` is
    what the run was expected to take; `left_out` are the steps that its time budget did not allow, `unmeasured`
    are sentences on what failed in the evaluation.
    """

    spec: ResolvedSpec
    job_id: str | None
    removed: list[int]
    kept: list[int]
    method: Method
    structure: MapStructure
    candidates: Sequence[Candidate]
    captured: CaptureRecord
    comparison: Comparison | None
    times: RunTimes
    imported_bytes: int
    provenance: Provenance
    base_card: BaseCard
    is_chat: bool
    layer_angles: LayerAngles | None
    irregular: tuple[str, ...]
    planned: Estimate
    left_out: Sequence[str]
    unmeasured: Sequence[str]
    trials: Sequence[Trial] = ()
    """Of a search for the deepest cut."""

    @property
    def spec_of_result(self) -> ResolvedSpec:
        """The specification for the depth that was found, where the deepest cut was asked for."""
        if not self.spec.searches:
            return self.spec
        return self.spec.at_ratio(ratio_of(len(self.removed), len(self.removed) + len(self.kept)))

    @property
    def answers(self) -> list[AnswerPair]:
        """Empty where no model was asked."""
        return [] if self.comparison is None else pair(self.comparison.answers_before, self.comparison.answers_after)

    @property
    def texts(self) -> Sequence[TextResult]:
        """Empty where nothing was measured."""
        return () if self.comparison is None else self.comparison.texts

    @property
    def tasks(self) -> Sequence[TaskPair]:
        """Empty where none were run."""
        return () if self.comparison is None else self.comparison.tasks

    @property
    def speed_changes(self) -> Mapping[str, SpeedChange]:
        """Of `prefill` and `decode`; empty where speed was not measured."""
        return {} if self.comparison is None else self.comparison.speed_changes

    @property
    def gate(self) -> GateResult | None:
        """`None` where there is no gate."""
        if self.spec.gate is None or self.comparison is None:
            return None
        return judge(self.spec.gate, self.comparison).model_copy(update={"trials": tuple(self.trials)})

    @property
    def warnings(self) -> list[ResultWarning]:
        return warnings_of(
            self.answers,
            self.texts,
            irregular=self.irregular,
            left_out=self.left_out,
            unmeasured=self.unmeasured,
        )
