"""The source model and the pruned one beside each other: on every text apart, in tasks, and in what they answer.

A model that is pruned on one kind of text may be good on that and poor elsewhere, so it is also measured on text that
took no part: the model's own, and the built-in general text. Answers to a few prompts show a person at once what a
perplexity does not tell.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch
from pydantic import TypeAdapter
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.activations.verified_file import Contents
from replaceme_core.engine.evaluation.measure import (
    LARGEST_LOSS,
    Divergence,
    Measured,
    Measurement,
    Subject,
    TextSize,
    mean_interval,
    measure,
)
from replaceme_core.engine.evaluation.speed import measure_speed
from replaceme_core.engine.evaluation.tasks import LoadedTasks, TaskPair
from replaceme_core.engine.model.block_runner import without_side_outputs
from replaceme_core.engine.text.documents import builtin_documents
from replaceme_core.engine.text.drawing import TokenSet
from replaceme_core.engine.text.limits import render
from replaceme_core.engine.text.tokens import check_ids, encode, end_tokens, pack
from replaceme_core.errors import BrokenModel, GateRejected, InvalidInput
from replaceme_core.families.resolve import resolve
from replaceme_core.hub.model_config import read_outline
from replaceme_core.request.calibration import SELF_GENERATED
from replaceme_core.request.defaults import MEASURED_ELSEWHERE
from replaceme_core.request.fields import GENERAL, PARTS_OF_GENERAL
from replaceme_core.request.gate import OF_TASKS, GateResult, GateSpec
from replaceme_core.runner.messages import describe, is_mistake

QUESTIONS = (
    "What is the capital of France?",
    "Name three colors.",
    "Why is the sky blue? Answer in one sentence.",
    "How many days does a week have?",
    "Write a Python function that adds two numbers.",
)
OPENINGS = (
    "The capital of France is",
    "Once upon a time, there was a",
    "Water boils when",
    "The seven days of the week are",
    "def add(a, b):\n    ",
)
NEW_TOKENS = 48
LONGEST_UNIT, LEAST_REPEATED = 16, 12
"""An answer loops if its end repeats a unit of at most `LONGEST_UNIT` tokens three times, over `LEAST_REPEATED` tokens
or more."""
GRAM = 4


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`loops`: the answer ends in a repetition. `tokens` are the new ones, without the end token."""

    prompt: str
    text: str
    tokens: tuple[int, ...]
    loops: bool


_ANSWERS = TypeAdapter(list[Answer])


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] = (),
    *,
    new_tokens: int,
    longest: int | None = None,
) -> list[Answer]:
    """Greedy answers of at most `new_tokens` tokens, by default to questions if the tokenizer has a chat template.

    Raises `InvalidInput` where a prompt and its answer may have more than `longest` tokens, and as `check_ids`.
    """
    prompts = prompts or (OPENINGS if tokenizer.chat_template is None else QUESTIONS)
    rows = [_ids(tokenizer, prompt) for prompt in prompts]
    check_ids(max(map(max, rows)), model.config.get_text_config().vocab_size)
    width = max(map(len, rows))
    if longest is not None and width + new_tokens > longest:
        raise InvalidInput(
            f"the model has {longest:,} positions, and a prompt of {width:,} tokens with an answer of {new_tokens:,} "
            "is asked for; shorten one of them",
            field="prompts",
        )
    # padded on the left, so that every answer begins at the same position; padded positions are masked
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    ends = end_tokens(model, tokenizer)
    model.generation_config = GenerationConfig()  # the model's own may ask for sampling
    output = model.generate(  # type: ignore[operator]  # of GenerationMixin, which the type does not tell
        ids,
        attention_mask=mask,
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=new_tokens, pad_token_id=0, eos_token_id=ends or None
        ),
        **without_side_outputs(model),
    )
    found = []
    for prompt, new in zip(prompts, output[:, width:].tolist(), strict=True):
        end = next((place for place, token in enumerate(new) if token in ends), len(new))
        tokens = tuple(new[:end])
        text = str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
        found.append(Answer(prompt=prompt, text=text, tokens=tokens, loops=repeats(tokens)))
    return found


def repeats(tokens: Sequence[int]) -> bool:
    """Whether `tokens` end in a repetition.

    >>> repeats([5, 1, 2, 3] + [7, 8, 9] * 4), repeats(list(range(20))), repeats([4] * 12)
    (True, False, True)
    """
    for unit in range(1, LONGEST_UNIT + 1):
        needed = max(3 * unit, LEAST_REPEATED)
        end = tokens[-needed:]
        if len(end) == needed and end[unit:] == end[:-unit]:
            return True
    return False


def distinct_share(answers: Sequence[Answer]) -> float | None:
    """The share of different runs of `GRAM` tokens among all of them; `None` where no answer is that long."""
    grams = [one.tokens[place : place + GRAM] for one in answers for place in range(len(one.tokens) - GRAM + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The tokens of a prompt; where the template of the model cannot be rendered, without it."""
    text, chats = prompt, tokenizer.chat_template is not None
    if chats:
        try:
            text = render(tokenizer, [{"role": "user", "content": prompt}], asks=True)
        except BrokenModel:
            chats = False
    return list(tokenizer(text, add_special_tokens=not chats, verbose=False)["input_ids"]) or [0]


ROUTED = 4
"""Sequences on which the choice of experts is compared."""
FIRST_PART = 0.6
"""Of the time for texts, for the first one."""
TEXTS_PART = 0.3
"""Of the time, for texts where there are tasks."""
Advance = Callable[[float], None]
_OF_ALL_TEXTS, _OF_TASKS = "worst_perplexity_ratio", ("accuracy_kept", OF_TASKS)
"""Criteria of a gate that ask for more than the first text."""
_logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Unmeasured:
    """What an evaluation could not measure, in sentences: a part that fails costs no result that was computed."""

    gate: GateSpec | None = None
    found: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, what: str, *criteria: str) -> Iterator[None]:
        """Note an error of the part that measures `what`; raise it where the gate has one of `criteria`.

        These are beginnings of names. An error without a code of its own is raised as `GateRejected`.
        """
        try:
            yield
        except Exception as error:  # any: the result is there, whatever fails now
            failed = describe(error)
            sentence = f"{what} could not be measured: {failed.message}"
            if self.gate is None or not any(name.startswith(criteria) for name in self.gate.criteria):
                _logger.warning("%s", sentence, exc_info=error if is_mistake(failed) else None)
                self.found.append(sentence)
            elif is_mistake(failed):
                raise GateRejected(f"the gate cannot be judged: {sentence}") from error
            else:
                raise


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """Perplexities on `tokens` predictions of one text, before and after, in `sequences` of one length.

    `words` and `bytes` are of the text of these tokens. `ratio_low` and `ratio_high` are the 95 percent confidence
    interval of `ratio`, from how much it differs between the sequences; `None` for fewer than three.
    `divergence` is the mean Kullback-Leibler divergence of the pruned model's next-token distribution from the source
    model's in nats, `agreement` the share of predictions whose most likely token is the same.
    """

    name: str
    tokens: int
    sequences: int
    words: int
    bytes: int
    before: float
    after: float
    divergence: float
    agreement: float
    ratio_low: float | None = None
    ratio_high: float | None = None

    @property
    def ratio(self) -> float:
        """The perplexity of the pruned model over that of the source model."""
        return self.after / self.before

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """How the embeddings of `images` images differ between both models.

    `distance` is the mean of 1 - cosine between the embeddings of one image, with its 95 percent confidence interval;
    `agreement` the share of images of which both models find the same other one nearest.
    """

    name: str
    images: int
    distance: float
    distance_low: float | None
    distance_high: float | None
    agreement: float | None


@dataclass(frozen=True, kw_only=True)
class ExpertsResult:
    """`changed` is the share of tokens for which the router of a block chooses other experts than before.

    `block` is its number in the source model.
    """

    block: int
    changed: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`before` and `after` are on the first text, which `texts` begins with, or on `images`, which have no texts.

    `answers_before` and `answers_after` are empty where no model was asked. `reused` names the results of the source
    model that an earlier run has left. `members` are the tasks of each name that was asked for: several of a group.
    """

    before: Measured
    after: Measured
    texts: Sequence[TextResult]
    answers_before: Sequence[Answer] = ()
    answers_after: Sequence[Answer] = ()
    tasks: Sequence[TaskPair] = ()
    members: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reused: Sequence[str] = ()
    images: Sequence[ImageResult] = ()
    experts: Sequence[ExpertsResult] = ()


@dataclass(kw_only=True)
class Original:
    """The source model, to compare any number of results with: what depends on it alone is in its `results`.

    Without `generates` no model is asked and none writes: one that is read block by block would be read from disk for
    every token. Text of the source model's own comes from another seed than that of its calibration. Its results should
    have a place to be kept in if it is compared with several: then it runs only once on each text.
    """

    subject: Subject
    tokens: TokenSet
    tokenizer: PreTrainedTokenizerBase
    generates: bool
    seed: int
    tasks: LoadedTasks | None = None
    unmeasured: Unmeasured = field(default_factory=Unmeasured)
    trained_on: Sequence[str] = ()
    """Texts beside those of the calibration that the result was trained on."""
    _speeds: dict[str, list[float]] = field(default_factory=dict)
    """Tokens per second of the source model so far, by the name of the text."""

    def compare(self, after: Subject, *, advance: Advance) -> Comparison:
        """Both on every text apart, and in the tasks. Raises `NumericalFailure` where the first perplexity is infinite.

        What else cannot be measured is left out, and noted in `unmeasured`.
        """
        of_texts = 1.0 if self.tasks is None else TEXTS_PART  # of the progress
        of_first = FIRST_PART * of_texts
        (name, home), *others = self.tokens.measured_texts.items()
        (before, pruned), result = self._measure(name, home, after, advance=lambda part: advance(of_first * part))
        found, texts = [result], dict(others)
        if not {GENERAL, *PARTS_OF_GENERAL}.intersection((*self.tokens.sources, *self.trained_on)):
            with self._on_text(GENERAL):
                texts[GENERAL] = self._general_text()
        if self.generates:
            with self._on_text(SELF_GENERATED):
                texts[SELF_GENERATED] = self.subject.results.own_text(
                    self.subject.model,
                    self.tokenizer,
                    count=MEASURED_ELSEWHERE,
                    length=self.tokens.measure.shape[1],
                    seed=self.seed + 1,
                )
        for number, (name, sequences) in enumerate(texts.items(), start=1):
            if len(sequences) == 0:  # the built-in text fills none
                continue
            with self._on_text(name):
                found.append(self._measure(name, sequences, after)[1])
            advance(of_first + (of_texts - of_first) * number / len(texts))
        pairs: Sequence[TaskPair] = ()
        if self.tasks is not None:
            with self.unmeasured.part("the accuracy in the tasks", *_OF_TASKS):
                pairs = self._run_tasks(self.tasks, after, lambda part: advance(of_texts + (1 - of_texts) * part))
        experts: Sequence[ExpertsResult] = ()
        with self.unmeasured.part("which experts the routers choose"):
            experts = changed_experts(self.subject.model, after.model, home[:ROUTED], kept=after.kept)
        reused = list(self.subject.results.reused)
        return Comparison(
            before=before,
            after=pruned,
            texts=found,
            tasks=pairs,
            members={} if self.tasks is None else self.tasks.members,
            reused=reused,
            experts=experts,
        )

    def finish(self, found: Comparison, after: Subject) -> Comparison:
        """`found` with the speed of both, in turn, and with their answers, where models are asked."""
        if not self.generates:
            return found
        home, *_ = self.tokens.measured_texts.values()
        with self.unmeasured.part("the speed"):
            old_speed, new_speed = measure_speed([self.subject.model, after.model], [home[0], home[0]])
            before, pruned = replace(found.before, speed=old_speed), replace(found.after, speed=new_speed)
            found = replace(found, before=before, after=pruned)
        with self.unmeasured.part("what both models answer"):
            old, new = (self._answers(subject) for subject in (self.subject, after))
            found = replace(found, answers_before=old, answers_after=new)
        return replace(found, reused=list(dict.fromkeys([*found.reused, *self.subject.results.reused])))

    def _measure(
        self, name: str, sequences: torch.Tensor, after: Subject, *, advance: Advance | None = None
    ) -> tuple[list[Measurement], TextResult]:
        """Both on the text of this name."""
        speeds = self._speeds.setdefault(name, [])
        pair = replace(self.subject, losses=[], speeds=speeds), replace(after, losses=[], speeds=[])
        size, apart = TextSize.of(sequences, self.tokenizer), Divergence()
        old, new = measured = measure(pair, sequences, size=size, divergence=apart, advance=advance)
        low, high = ratio_interval(*(one.losses for one in pair), predictions=sequences.shape[1] - 1) or (None, None)
        return measured, TextResult(
            name=name,
            tokens=old.tokens,
            sequences=len(sequences),
            words=size.words,
            bytes=size.bytes,
            before=old.perplexity,
            after=new.perplexity,
            divergence=apart.mean_nats,
            agreement=apart.agreement,
            ratio_low=low,
            ratio_high=high,
        )

    def _on_text(self, name: str) -> AbstractContextManager[None]:
        return self.unmeasured.part(f"the perplexity on {name} text", _OF_ALL_TEXTS)

    def _general_text(self) -> torch.Tensor:
        """`MEASURED_ELSEWHERE` sequences (sequences, length), spread over the built-in text; fewer if it is short."""
        encoded = encode(builtin_documents(GENERAL), self.tokenizer)
        sequences = pack(encoded, self.tokenizer, length=self.tokens.measure.shape[1], limit=10_000).sequences
        return sequences[:: max(1, len(sequences) // MEASURED_ELSEWHERE)][:MEASURED_ELSEWHERE]

    def _answers(self, subject: Subject) -> list[Answer]:
        def ask() -> Contents:
            longest = read_outline(subject.directory).longest
            answers = answer(subject.model, self.tokenizer, new_tokens=NEW_TOKENS, longest=longest)
            return Contents(record={"answers": [asdict(one) for one in answers]}, tensors={})

        return _ANSWERS.validate_python(subject.results.find_or_make("answers", {}, ask).record["answers"])

    def _run_tasks(self, tasks: LoadedTasks, after: Subject, advance: Advance) -> list[TaskPair]:
        halves: tuple[Advance, Advance] = (lambda part: advance(part / 2), lambda part: advance((1 + part) / 2))
        old, new = (
            tasks.run(subject.model, self.tokenizer, subject.results, advance=half)
            for subject, half in zip((self.subject, after), halves, strict=True)
        )
        return [TaskPair(before=one, after=other) for one, other in zip(old, new, strict=True)]


def changed_experts(
    before: PreTrainedModel, after: PreTrainedModel, sequences: torch.Tensor, *, kept: Sequence[int]
) -> list[ExpertsResult]:
    """For each block with experts of the pruned model: for how many of the tokens it chooses others than before.

    `sequences` are token ids (sequences, length). None without experts, or where they are not chosen by token.
    """
    old, new = (_chosen_experts(model, sequences) for model in (before, after))
    return [
        ExpertsResult(block=block, changed=float((old[block] != new[slot]).any(-1).double().mean()))
        for slot, block in enumerate(kept)
        if block in old and slot in new
    ]


@torch.inference_mode()
def _chosen_experts(model: PreTrainedModel, sequences: torch.Tensor) -> dict[int, torch.Tensor]:
    """By block, the numbers of the experts that each token goes to, sorted: (tokens, experts of a token)."""
    found: dict[int, list[torch.Tensor]] = {}

    def record(block: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            given = [one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)]
            chosen = next((one for one in given if one.dim() == 2 and not one.is_floating_point()), None)
            if chosen is not None:
                found.setdefault(block, []).append(chosen.sort(-1).values.cpu())

        return hook

    stacked = [
        (block, module)
        for block, layer in enumerate(resolve(model).blocks)
        for module in layer.modules()
        if any(each.dim() == 3 for each in module.parameters(recurse=False))
    ]
    with ExitStack() as stack:
        for block, module in stacked:
            stack.enter_context(module.register_forward_pre_hook(record(block), with_kwargs=True))
        if stacked:
            model(input_ids=sequences.to(model.device), use_cache=False, **without_side_outputs(model))
    return {block: torch.cat(parts) for block, parts in found.items()}


def ratio_interval(before: Sequence[float], after: Sequence[float], *, predictions: int) -> tuple[float, float] | None:
    """The 95 percent confidence interval of the ratio of perplexities, from the losses of the same sequences in nats.

    Each sequence has `predictions` predicted tokens. The pairs are compared, since both models find the same sequences
    hard. `None` for fewer than three sequences.
    """
    interval = mean_interval([(new - old) / predictions for old, new in zip(before, after, strict=True)])
    if interval is None:
        return None
    low, high = (math.exp(min(end, LARGEST_LOSS)) for end in interval)
    return low, high


def judge(gate: GateSpec, found: Comparison) -> GateResult:
    """Every criterion of `gate` with its value in `found`. Raises `GateRejected` where one has none."""
    values = measured_values(found)
    for name in gate.criteria:
        if name not in values:
            raise GateRejected(f"the gate cannot be judged by {name}: {_why_unknown(name, found)}")
    return gate.judge(values)


def _why_unknown(name: str, found: Comparison) -> str:
    if not name.startswith(_OF_TASKS):
        return "it was not measured"
    if any(one.before.accuracy is not None for one in _judged_by(name, found)):
        return "the accuracy of the original model is 0"
    return "no accuracy was measured"


def measured_values(found: Comparison) -> dict[str, float]:
    """All that a gate can ask for, by the names of its criteria; without tasks in which there was nothing to keep."""
    names = dict.fromkeys([*(one.before.name for one in found.tasks), *found.members])
    kept = {name: _kept(name, found) for name in ("accuracy_kept", *(f"{OF_TASKS}{one}" for one in names))}
    return {
        **{name: share for name, share in kept.items() if share is not None},
        **(_of_texts(found.texts) if found.texts else _of_images(found.images[0])),
        "size_ratio": found.after.bytes / found.before.bytes,
    }


def _of_texts(texts: Sequence[TextResult]) -> dict[str, float]:
    return {
        "perplexity_ratio": texts[0].ratio,
        "worst_perplexity_ratio": max(one.ratio for one in texts),
        "divergence": texts[0].divergence,
        "agreement": texts[0].agreement,
    }


def _of_images(images: ImageResult) -> dict[str, float]:
    agreement = {} if images.agreement is None else {"agreement": images.agreement}
    return {"embedding_distance": images.distance, **agreement}


def _judged_by(name: str, found: Comparison) -> Sequence[TaskPair]:
    """The tasks of the criterion `name`: all, a single one, or those of a group."""
    if not name.startswith(OF_TASKS):
        return found.tasks
    task = name.removeprefix(OF_TASKS)
    members = found.members.get(task, (task,))
    return [one for one in found.tasks if one.before.name in members]


def _kept(name: str, found: Comparison) -> float | None:
    """The share of the summed accuracy that is kept in the tasks of `name`; those without an accuracy do not count.

    Tasks of a group count by their numbers of questions, as in lm_eval.
    """
    pairs = _judged_by(name, found)
    most = max((one.before.samples for one in pairs), default=0)
    before = after = 0.0
    for one in pairs:
        weight = one.before.samples / most if name.startswith(OF_TASKS) else 1.0
        before += weight * (one.before.accuracy or 0.0)
        after += weight * (one.after.accuracy or 0.0)
    return after / before if before else None
