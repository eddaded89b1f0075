"""Multiple-choice accuracy and last-word perplexity of a model directory.

    python -m benchmarks.questions MODEL_DIR [--choices FILE.jsonl ...] [--words FILE.jsonl ...] [--limit N]

Rows of a choices file have `query`, `choices` and `gold`, the index of the right choice. The model's answer is the
choice with the greatest log-likelihood per character after `query` + "\\nAnswer:" (length-normalised accuracy, as
acc_norm of lm-evaluation-harness). Rows of a words file have `context` and `continuation` (LAMBADA): measured are the
perplexity of the continuation as one word, and the share of continuations all of whose tokens are the most likely ones.

Accuracy is printed with its 95 % interval (Wilson) and relative to guessing: 0 for guessing, 1 for all right.
"""

import argparse
import copy
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.evaluation.measure import share_interval
from replaceme_core.engine.model.load import DTYPES, load_model, load_tokenizer

TOKENS_AT_ONCE = 8_192


@dataclass(frozen=True, kw_only=True)
class Question:
    """Token ids of a context and of its possible continuations; `lengths` of these in characters."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    gold: int


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """`low` and `high` bound `accuracy`; `above_chance` is 0 for guessing and 1 for all right."""

    file: str
    questions: int
    accuracy: float
    low: float
    high: float
    chance: float
    above_chance: float


@dataclass(frozen=True, kw_only=True)
class LastWord:
    """`perplexity` of the continuation as a whole; `accuracy`: the share whose tokens are all the most likely ones."""

    file: str
    words: int
    perplexity: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Log-probability in nats of a continuation, and whether each of its tokens is the most likely one."""

    nats: float
    greedy: bool


def batches(questions: Sequence[Question]) -> Iterator[list[int]]:
    """Indices of questions, in batches whose contexts have the same length, so that none needs padding."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, question in enumerate(questions):
        by_length[len(question.context)].append(index)
    for length, indices in sorted(by_length.items()):
        size = max(1, TOKENS_AT_ONCE // max(length, 1))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


@torch.inference_mode()
def likelihoods(model: PreTrainedModel, questions: Sequence[Question]) -> list[list[Likelihood]]:
    """The likelihoods of all continuations, by question. Continuations run on copies of the cache of their context."""
    found: list[list[Likelihood]] = [[] for _ in questions]
    for indices in batches(questions):
        contexts = torch.tensor([questions[index].context for index in indices], device=model.device)
        cache = DynamicCache(config=model.config)
        before = model(input_ids=contexts, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        answers = [(place, ids) for place, index in enumerate(indices) for ids in questions[index].continuations]
        scored: dict[int, Likelihood] = {}
        for rows in similar([len(ids) for _, ids in answers]):
            places = torch.tensor([answers[row][0] for row in rows], device=model.device)
            width = max(len(answers[row][1]) for row in rows)
            logits = before[places].unsqueeze(1)  # (rows, 1, vocabulary)
            if width > 1:
                padded = [[*answers[row][1], *[0] * width][: width - 1] for row in rows]
                copied = copy.deepcopy(cache)
                copied.reorder_cache(places)  # type: ignore[arg-type]  # any integer tensor will do
                after = model(input_ids=torch.tensor(padded, device=model.device), cache=copied, use_cache=True).logits
                logits = torch.cat([logits, after], dim=1)
            scored |= {row: _likelihood(logits[at], answers[row][1]) for at, row in enumerate(rows)}
        for row, (place, _) in enumerate(answers):
            found[indices[place]].append(scored[row])
    return found


def similar(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of rows, in groups that are padded to one width: lengths differ by at most a quarter, to save work.

    >>> list(similar([4, 9, 4, 10, 40]))
    [[0, 2], [1, 3], [4]]
    """
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if group and (lengths[row] > 1.25 * lengths[group[0]] + 1 or len(group) * lengths[row] >= TOKENS_AT_ONCE):
            yield group
            group = []
        group.append(row)
    yield group


def _likelihood(logits: torch.Tensor, ids: Sequence[int]) -> Likelihood:
    """The likelihood of `ids` under logits of shape (at least len(ids), vocabulary)."""
    predicted = logits[: len(ids)].float().log_softmax(-1)
    wanted = torch.tensor(ids, device=logits.device)
    return Likelihood(
        nats=float(predicted.gather(1, wanted.unsqueeze(1)).sum()),
        greedy=bool((predicted.argmax(-1) == wanted).all()),
    )


def read_choices(path: Path, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> list[Question]:
    questions = []
    for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
        row = json.loads(line)
        texts = [f" {choice}" for choice in row["choices"]]
        questions.append(
            Question(
                context=_ids(tokenizer, row["query"].rstrip() + "\nAnswer:", start=True),
                continuations=tuple(_ids(tokenizer, text) for text in texts),
                lengths=tuple(map(len, texts)),
                gold=row["gold"],
            )
        )
    return questions


def read_words(path: Path, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> list[Question]:
    questions = []
    for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
        row = json.loads(line)
        text = " " + row["continuation"].strip()
        context = _ids(tokenizer, row["context"], start=True)
        questions.append(
            Question(context=context, continuations=(_ids(tokenizer, text),), lengths=(len(text),), gold=0)
        )
    return questions


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, start: bool = False) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=start, verbose=False)["input_ids"])


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, limit: int | None) -> Accuracy:
    questions = read_choices(path, tokenizer, limit)
    right, chance = 0, 0.0
    for question, found in zip(questions, likelihoods(model, questions), strict=True):
        scores = [one.nats / length for one, length in zip(found, question.lengths, strict=True)]
        right += scores.index(max(scores)) == question.gold
        chance += 1 / len(scores) / len(questions)
    share = right / len(questions)
    low, high = share_interval(share, len(questions))
    return Accuracy(
        file=path.name,
        questions=len(questions),
        accuracy=share,
        low=low,
        high=high,
        chance=chance,
        above_chance=(share - chance) / (1 - chance),
    )


def last_word(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, limit: int | None) -> LastWord:
    questions = read_words(path, tokenizer, limit)
    found = [one for (one,) in likelihoods(model, questions)]
    return LastWord(
        file=path.name,
        words=len(found),
        perplexity=math.exp(-sum(one.nats for one in found) / len(found)),
        accuracy=sum(one.greedy for one in found) / len(found),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model directory")
    parser.add_argument("--choices", type=Path, nargs="*", default=[], help="multiple-choice questions")
    parser.add_argument("--words", type=Path, nargs="*", default=[], help="texts whose last word is to be predicted")
    parser.add_argument("--limit", type=int, help="use only the first rows of each file")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model, dtype=DTYPES[options.dtype], device=options.device)
    results: list[Accuracy | LastWord] = []
    for path in options.choices:
        one = accuracy(model, tokenizer, path, options.limit)
        results.append(one)
        print(
            f"{one.file}: accuracy {one.accuracy:.3f} ({one.low:.3f} to {one.high:.3f}), "
            f"above chance {one.above_chance:.3f}, {one.questions} questions",
            flush=True,
        )
    for path in options.words:
        word = last_word(model, tokenizer, path, options.limit)
        results.append(word)
        print(
            f"{word.file}: last-word perplexity {word.perplexity:.1f}, accuracy {word.accuracy:.3f}, {word.words} words"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
