"""What a pruned model of images is worth: how far its embeddings are from those of the source model, and its accuracy.

Accuracy is measured where it can be: with labels by a linear probe, and where there is a tower for text by the names of
the labels (zero-shot), and with captions by finding the caption of each image (retrieval).
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.evaluation.compare import Comparison, ImageResult, Unmeasured
from replaceme_core.engine.evaluation.measure import Measured, Subject, mean_interval
from replaceme_core.engine.evaluation.speed import ImageSpeed, Rate, in_turn, weights_and_peak
from replaceme_core.engine.evaluation.tasks import TaskPair, TaskResult
from replaceme_core.engine.model.block_runner import embedding_distances
from replaceme_core.engine.model.device import synchronise
from replaceme_core.engine.model.load import load_tokenizer
from replaceme_core.engine.text.drawing import Pictures
from replaceme_core.engine.text.tokens import check_ids
from replaceme_core.errors import NumericalFailure, ReplaceMeError
from replaceme_core.families.resolve import embeddings

_logger = logging.getLogger(__name__)
BATCH = 8
FOLDS = 5
"""Of the probe: each image is classified by a probe that was fitted on the other four fifths."""
PROBE_RIDGE = 1e-2
"""Relative to the mean diagonal of the Gram matrix."""
LEAST_OF_CLASS = 2
"""Images of a label that the probe is asked for."""
PROMPT = "a photo of a {}."


@dataclass(kw_only=True)
class OriginalOfImages:
    """The source model, to compare results with on the images `numbers` of `pictures`, which come from `name`.

    `tokenizer` is that of the tower for text, if there is one.
    """

    subject: Subject
    pictures: Pictures
    numbers: Sequence[int]
    name: str
    tokenizer: PreTrainedTokenizerBase | None
    unmeasured: Unmeasured = field(default_factory=Unmeasured)
    _own: torch.Tensor | None = None

    @torch.inference_mode()
    def compare(self, after: Subject, *, advance: Callable[[float], None]) -> Comparison:
        """Distances and accuracies. Raises `NumericalFailure` for embeddings that are not finite."""
        if self._own is None:
            self._own = self._embedded(self.subject, lambda part: advance(0.4 * part))
        old, new = self._own, self._embedded(after, lambda part: advance(0.4 + 0.4 * part))
        distances = embedding_distances(new, old)
        low, high = mean_interval(distances.tolist()) or (None, None)
        both = _nearest(old) == _nearest(new) if len(old) > 2 else None
        result = ImageResult(
            name=self.name,
            images=len(old),
            distance=float(distances.mean()),
            distance_low=None if low is None else max(0.0, low),
            distance_high=high,
            agreement=None if both is None else float(both.double().mean()),
        )
        pairs: Sequence[TaskPair] = ()
        with self.unmeasured.part("the accuracy", "accuracy_kept"):
            before, found = (
                {one.name: one for one in self._accuracies(*each)} for each in ((self.subject, old), (after, new))
            )
            pairs = [TaskPair(before=before[name], after=found[name]) for name in before]
        advance(1.0)
        return Comparison(
            before=Measured.of(self.subject), after=Measured.of(after), texts=(), images=[result], tasks=pairs
        )

    def finish(self, found: Comparison, after: Subject) -> Comparison:
        """`found` with the speed of both, in turn."""
        with self.unmeasured.part("the speed"), torch.inference_mode():
            batch = self.pictures.pixels[list(self.numbers[:BATCH])]
            old, new = _speed([self.subject.model, after.model], batch)
            before, pruned = replace(found.before, speed=old), replace(found.after, speed=new)
            return replace(found, before=before, after=pruned)
        return found

    def _embedded(self, subject: Subject, advance: Callable[[float], None]) -> torch.Tensor:
        """The embeddings of all images (images, width), in float32 on the host."""
        parts = list(torch.tensor(list(self.numbers)).split(BATCH))
        found = []
        for done, numbers in enumerate(parts, start=1):
            found.append(_embed(subject.model, self.pictures.pixels[numbers]).float().cpu())
            advance(done / len(parts))
        whole = torch.cat(found)
        if not bool(whole.isfinite().all()):
            raise NumericalFailure(
                f"the embeddings of {subject.name} are not finite; compute in float32 (compute.dtype), or check the "
                "weights of the model"
            )
        return whole

    def _accuracies(self, subject: Subject, found: torch.Tensor) -> list[TaskResult]:
        """Of one model, whose embeddings of the images are `found`."""
        labels = [self.pictures.labels[number] for number in self.numbers]
        captions = [self.pictures.captions[number] for number in self.numbers]
        results = []
        classes = sorted({label for label in labels if label is not None})
        if len(classes) > 1 and None not in labels:
            wanted = torch.tensor([classes.index(label) for label in labels if label is not None])
            if int(wanted.bincount().min()) >= LEAST_OF_CLASS:
                right = probed(found, wanted, classes=len(classes)) == wanted
                results.append(_task("linear probe", right, chance=1 / len(classes)))
            if self._reads_text(subject.model):
                names = self._texts(subject.model, [PROMPT.format(name.replace("_", " ")) for name in classes])
                results.append(_task("zero-shot", _most_alike(found, names) == wanted, chance=1 / len(classes)))
        if None not in captions and len(set(captions)) > 1 and self._reads_text(subject.model):
            texts = self._texts(subject.model, [str(caption) for caption in captions])
            chosen = _most_alike(found, texts)
            right = torch.tensor([captions[one] == captions[number] for number, one in enumerate(chosen.tolist())])
            chance = sum(count**2 for count in Counter(captions).values()) / len(captions) ** 2  # some may be the same
            results.append(_task("retrieval", right, chance=chance))
        return results

    def _reads_text(self, model: PreTrainedModel) -> bool:
        return self.tokenizer is not None and hasattr(model, "get_text_features")

    def _texts(self, model: PreTrainedModel, texts: Sequence[str]) -> torch.Tensor:
        """The embeddings of texts (texts, width) by the model's own tower."""
        assert self.tokenizer is not None
        config = model.config.get_text_config()
        length = min(self.tokenizer.model_max_length, config.max_position_embeddings)
        given = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        check_ids(int(given["input_ids"].max()), config.vocab_size)
        known = {
            name: values.to(model.device) for name, values in given.items() if name in ("input_ids", "attention_mask")
        }
        output = model.get_text_features(**known)  # type: ignore[operator]  # of the classes with two towers
        features = output if isinstance(output, torch.Tensor) else output.pooler_output
        return features.float().cpu()


def tokenizer_of_text_tower(directory: Path, model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """The one in the directory of a model that has a tower for text; `None` where there is none to be used."""
    if not hasattr(model, "get_text_features"):
        return None
    try:
        tokenizer = load_tokenizer(directory)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer
    except ReplaceMeError as error:
        _logger.warning("no accuracy by text is measured: %s", error)
        return None


def _embed(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    return embeddings(model, pixels.to(model.device, model.dtype))


def _nearest(found: torch.Tensor) -> torch.Tensor:
    """Of each row the number of the other row that is most alike."""
    unit = torch.nn.functional.normalize(found, dim=-1)
    alike = unit @ unit.T
    return alike.fill_diagonal_(-2.0).argmax(-1)


def _most_alike(found: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    unit, others = (torch.nn.functional.normalize(each, dim=-1) for each in (found, texts))
    return (unit @ others.T).argmax(-1)


def probed(found: torch.Tensor, wanted: torch.Tensor, *, classes: int) -> torch.Tensor:
    """The label (images,) that a linear probe gives each of the embeddings `found` (images, width).

    Ridge regression to one value for each label, on the images of the other folds.
    """
    targets = torch.nn.functional.one_hot(wanted, classes).double()
    inputs, places = found.double(), torch.arange(len(found)) % FOLDS
    chosen = torch.zeros_like(wanted)
    for fold in range(FOLDS):
        fitted, asked = inputs[places != fold], inputs[places == fold]
        mean = fitted.mean(0)
        gram = (fitted - mean).T @ (fitted - mean)
        ridge = PROBE_RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        middle = targets[places != fold].mean(0)
        weights = torch.linalg.solve(gram + ridge, (fitted - mean).T @ (targets[places != fold] - middle))
        chosen[places == fold] = ((asked - mean) @ weights + middle).argmax(-1)
    return chosen


def _task(name: str, right: torch.Tensor, *, chance: float) -> TaskResult:
    accuracy = float(right.double().mean())
    return TaskResult(name=name, samples=len(right), few_shot=0, accuracy=accuracy, chance=chance, metrics={})


def _speed(models: Sequence[PreTrainedModel], batch: torch.Tensor) -> list[ImageSpeed]:
    """Images per second of `models` in turn, after a run that is not timed."""
    runs = [partial(_images_per_second, model, batch) for model in models]
    peaks = [weights_and_peak(model, run) for model, run in zip(models, runs, strict=True)]
    return [ImageSpeed(images=Rate.of(own), peak_bytes=peak) for own, peak in zip(in_turn(runs), peaks, strict=True)]


def _images_per_second(model: PreTrainedModel, batch: torch.Tensor) -> float:
    synchronise(model.device)
    begin = time.perf_counter()
    _embed(model, batch)
    synchronise(model.device)
    return len(batch) / (time.perf_counter() - begin)
