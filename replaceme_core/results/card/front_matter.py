"""The header of the model card, which the Hub reads."""

from huggingface_hub import EvalResult, ModelCardData

from replaceme_core.calibration_spec import MixedSource
from replaceme_core.evaluation.compare import TextResult
from replaceme_core.fields import BUILTIN_PREFIX
from replaceme_core.results.card.words import Names
from replaceme_core.results.outcome import RunOutcome

TAGS = ("depth-pruning", "pruned", "replaceme", "compression")
RELATION = "finetune"
"""The Hub knows adapter, finetune, merge and quantized; of these only this one means other weights of one kind."""


def front_matter(outcome: RunOutcome, names: Names) -> ModelCardData:
    """Licence and languages are those of the original; what is not known is left out, and nothing is invented."""
    base, results = outcome.base_card, _results(outcome)
    mix = outcome.spec.calibration.mix
    datasets = list(dict.fromkeys(source.name for source in mix if source.is_on_hub))
    return ModelCardData(
        license=base.licence,
        license_name=base.name,
        license_link=base.link,
        language=list(base.languages) or None,
        base_model=names.repository,
        base_model_relation=RELATION if names.repository else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(TAGS),
        datasets=datasets if outcome.provenance.hub is not None and datasets else None,
        metrics=["perplexity"] if results else None,
        model_name=names.title if results else None,
        eval_results=results or None,
    )


def _results(outcome: RunOutcome) -> list[EvalResult]:
    """The perplexity on each text, with that of the original beside it."""
    sources = {source.name: source for source in outcome.spec.calibration.mix if source.is_on_hub}
    length = outcome.spec.calibration.max_length
    return [_result(one, sources.get(one.name), length=length) for one in outcome.texts]


def _result(one: TextResult, data_set: MixedSource | None, *, length: int) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        task_name="Language modelling",
        dataset_type=one.name.removeprefix(BUILTIN_PREFIX),
        dataset_name=one.name,
        dataset_config=data_set.config if data_set else None,
        dataset_split=data_set.split if data_set else None,
        dataset_revision=data_set.revision if data_set else None,
        dataset_args={"tokens": one.tokens, "sequence_length": length, "original_model": round(one.before, 4)},
        metric_type="perplexity",
        metric_name="Perplexity",
        metric_value=round(one.after, 4),
    )
