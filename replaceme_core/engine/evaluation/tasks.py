"""Tasks of the lm-evaluation-harness, run by that library itself on a model that is in memory, without a network.

Names are those of the library, or of YAML files in a directory of the operator. The same directory holds the data: a
task of the data set `org/name` reads `DIRECTORY/org/name`, and `data_files` are relative to it. `lm_eval` is an extra,
and is imported only where tasks are asked for.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.engine.activations.verified_file import Contents
from replaceme_core.engine.evaluation.dense_results import DenseResults
from replaceme_core.engine.evaluation.measure import share_interval
from replaceme_core.errors import BrokenModel, InvalidInput
from replaceme_core.library_errors import library_errors
from replaceme_core.request.resolve import TASK_BATCH, texts_at_once
from replaceme_core.request.tasks import expanded

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

BOOTSTRAPS = 1000
_ACCURACIES = ("acc", "acc_norm", "exact_match")
_STRICT = "strict-match"
"""The filter of answers that is read first; a task such as GSM8K has an accuracy for each of its filters alone."""
_NO_FILTER = "none"
_CODE = (".yaml", ".yml", ".py")
_FIX = "it may have fewer examples than few_shot asks for, or write more tokens than the model has positions"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of a task; `stderr` is `None` where the library has none for it."""

    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """`accuracy` over `samples` questions, and all `metrics` by their names.

    `chance` is the accuracy of guessing. Both are `None` for a task that has no accuracy, or no choices; `chance` also
    for one that counts right answers in a way of its own.
    """

    name: str
    samples: int
    few_shot: int
    accuracy: float | None
    chance: float | None
    metrics: Mapping[str, Score]

    @classmethod
    def of(cls, name: str, found: Mapping[str, Any], *, samples: int, few_shot: int, chance: float | None) -> Self:
        """`found` are the library's results of the task: `acc,none`, `acc_stderr,none` and so on."""
        metrics = {}
        for key, value in found.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = found.get(f"{metric}_stderr,{kind}")
            label = metric if kind == _NO_FILTER else f"{metric},{kind}"
            metrics[label] = Score(value=float(value), stderr=error if isinstance(error, float) else None)
        filtered = [label for one in _ACCURACIES for label in metrics if label.startswith(f"{one},")]
        labels = (*_ACCURACIES, *(f"{one},{_STRICT}" for one in _ACCURACIES), *filtered)
        score = next((metrics[label] for label in labels if label in metrics), None)
        return cls(
            name=name,
            samples=samples,
            few_shot=few_shot,
            accuracy=None if score is None else score.value,
            chance=None if score is None else chance,
            metrics=metrics,
        )

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 percent confidence interval of the accuracy; `None` where it is no share of the questions."""
        if self.accuracy is None or not 0 <= self.accuracy <= 1 or not self.samples:
            return None
        return share_interval(self.accuracy, self.samples)

    def as_dict(self) -> dict[str, object]:
        low, high = self.interval or (None, None)
        return {**asdict(self), "low": low, "high": high}

    def kept_of(self, first: "TaskResult") -> dict[str, float | None]:
        """The share of the accuracy of `first` that is kept, and of what that has above chance; `None`: not defined."""
        kept = above = None
        if self.accuracy is not None and first.accuracy:
            kept = self.accuracy / first.accuracy
            if first.chance is not None and first.accuracy > first.chance:
                above = (self.accuracy - first.chance) / (first.accuracy - first.chance)
        return {"kept": kept, "kept_above_chance": above}


_RESULT = TypeAdapter(TaskResult)


@dataclass(frozen=True, kw_only=True)
class TaskPair:
    """A task with the results of the original model and of the pruned one."""

    before: TaskResult
    after: TaskResult

    def as_dict(self) -> dict[str, object]:
        shared = {name: getattr(self.before, name) for name in ("name", "samples", "few_shot", "chance")}
        sides: dict[str, object] = {
            side: {key: value for key, value in result.as_dict().items() if key not in shared}
            for side, result in (("before", self.before), ("after", self.after))
        }
        return {**shared, **sides, **self.after.kept_of(self.before)}


@dataclass(frozen=True, kw_only=True)
class LoadedTasks:
    """Tasks with their data; any number of models may run them.

    `members` has the tasks of each name that was asked for: several of a group. `code` is a digest of what else decides
    the results: the library and files of the operator.
    """

    tasks: "Mapping[str, Task]"
    members: Mapping[str, Sequence[str]]
    limit: int | None
    code: str

    def run(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        results: DenseResults,
        *,
        advance: Callable[[float], None] = lambda part: None,
    ) -> list[TaskResult]:
        """The results of all tasks, in order; those that `results` has are not computed again.

        `advance` is called with the part of the tasks that is done.
        """
        found = []
        for name, task in self.tasks.items():
            make = partial(self._run, name, task, model, tokenizer)
            asked = {"limit": self.limit, "code": self.code, "task": _identity(task)} if results.caches else {}
            contents = results.find_or_make(f"task {name}", asked, make)
            found.append(_RESULT.validate_python(contents.record))
            advance(len(found) / len(self.tasks))
        return found

    def _run(self, name: str, task: "Task", model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Contents:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=TASK_BATCH)
        _bound_logits(harness, vocabulary=model.config.get_text_config().vocab_size)
        task.set_fewshot_seed(seed=1234)  # that of the library's own command; each run draws on
        try:
            with library_errors(f"the task {name} does not run on the model", fix=_FIX):
                found = evaluate(
                    lm=harness,
                    task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
                    limit=self.limit,
                    bootstrap_iters=BOOTSTRAPS,
                    log_samples=True,
                )
        except BrokenModel as error:  # it has run on texts
            raise InvalidInput(error.message, field="evaluation.tasks", value=name) from error
        samples = found["samples"][name]
        result = TaskResult.of(
            name,
            found["results"][name],
            samples=len({one["doc_id"] for one in samples}),
            few_shot=int(task.get_config("num_fewshot") or 0),
            chance=_chance(task, [one["doc"] for one in samples]),
        )
        return Contents(record=result.as_dict(), tensors={})


def _bound_logits(harness: "HFLM", *, vocabulary: int) -> None:
    """Let the library read fewer texts at once where these are long: it makes the logits of all their positions."""
    read = harness._loglikelihood_tokens

    def read_some(requests: Sequence[tuple[object, list[int], list[int]]], **options: Any) -> Any:
        longest = max((len(context) + len(continuation) for _, context, continuation in requests), default=1)
        harness.batch_size_per_gpu = texts_at_once(min(longest, harness.max_length) * vocabulary)
        return read(requests, **options)

    harness._loglikelihood_tokens = read_some


def load_tasks(
    names: Sequence[str], *, directory: str | None, limit: int | None = None, few_shot: int | None = None
) -> LoadedTasks | None:
    """The tasks of `names`; `None` without any. `limit`: the most questions of each.

    `few_shot` is the number of examples in the prompt; by default that of the task, or of the suite. The names were
    checked by the process that asks (`check_tasks`). Raises `InvalidInput` for one that cannot be loaded.
    """
    if not names:
        return None
    if find_spec("lm_eval") is None or find_spec("accelerate") is None:
        raise InvalidInput(
            "tasks need libraries that are not installed; install them with: pip install 'replaceme[tasks]'",
            field="evaluation.tasks",
        )
    os.environ["DISABLE_MULTIPROC"] = "1"  # the library would start a process for each core to estimate an error
    assert directory is not None, "it was checked"
    with contextlib.chdir(directory):  # paths of data are relative to it
        loaded = _load(expanded(names), directory=Path(directory), few_shot=few_shot)
    tasks = {name: task for found in loaded.values() for name, task in found.items()}
    members = {name: tuple(found) for name, found in loaded.items()}
    return LoadedTasks(tasks=tasks, members=members, limit=limit, code=_code_of(Path(directory)))


def _load(names: Mapping[str, int | None], *, directory: Path, few_shot: int | None) -> "dict[str, dict[str, Task]]":
    """The task of each of `names`, or those of the group, with their data."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=directory, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):  # to read those of the library takes seconds
        manager = TaskManager(include_path=directory)
    loaded: dict[str, dict[str, Task]] = {}
    for name, usual in names.items():
        try:
            tasks = manager.load([name])["tasks"]
        except Exception as error:  # the library and its data sets raise errors of any kind
            message = (
                f"the task {name} cannot be loaded: its YAML or its data in the directory of the tasks cannot be used"
            )
            raise InvalidInput(message, field="evaluation.tasks", value=name).because(error) from error
        shots = usual if few_shot is None else few_shot
        for task in tasks.values():
            if shots is not None and task.get_config("num_fewshot") != 0:  # 0 is for a task that has no examples
                task.set_config(key="num_fewshot", value=shots)
        loaded[name] = tasks
    return loaded


def _chance(task: "Task", documents: Sequence[Any]) -> float | None:
    """The accuracy of guessing; `None` for a task without choices, or that counts right answers in a way of its own."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.get_config("process_results") is not None or not documents:
        return None
    return sum(1 / len(task.doc_to_choice(document)) for document in documents) / len(documents)


def _code_of(directory: Path) -> str:
    """A digest of the library's version and of the YAML files and the code in `directory`, which tasks may use."""
    total = hashlib.sha256(version("lm_eval").encode())
    for path in sorted(path for path in directory.rglob("*") if path.suffix in _CODE):
        if path.is_file():
            total.update(str(path).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def _identity(task: "Task") -> str:
    """A digest of the task's settings and of all rows that it reads: data of the same name may change."""
    total = hashlib.sha256(json.dumps(task.dump_config(), sort_keys=True, default=_name_of).encode())
    total.update(f"{task.OUTPUT_TYPE} {task.VERSION}".encode())
    for rows in (task.eval_docs, task.fewshot_docs() if task.get_config("num_fewshot") else ()):
        for row in rows:
            total.update(json.dumps(row, sort_keys=True, default=_name_of).encode() + b"\0")
    return total.hexdigest()


def _name_of(value: object) -> str:
    """For what JSON does not have: the name of a function, in whose text is an address, and the text of the rest."""
    return str(getattr(value, "__qualname__", value))
