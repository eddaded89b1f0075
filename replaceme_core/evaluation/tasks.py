"""Tasks of the lm-evaluation-harness, run by that library itself on a model that is in memory, without a network.

Names are those of the library, or of YAML files in a directory of the operator. The same directory holds the data: a
task of the data set `org/name` reads `DIRECTORY/org/name`, and `data_files` are relative to it. `lm_eval` is an extra,
and is imported only where tasks are asked for.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaceme_core.errors import InvalidInput
from replaceme_core.gate.suite import expanded
from replaceme_core.library_errors import library_errors
from replaceme_core.runner.messages import RunnerRequest

if TYPE_CHECKING:
    from lm_eval.api.task import Task

BATCH_SIZE = 8
BOOTSTRAPS = 1000
_NORMAL = 1.959964
_ACCURACIES = ("acc", "acc_norm", "exact_match")
_NO_FILTER = "none"


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric of a task; `stderr` is `None` where the library has none for it."""

    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """`accuracy` over `samples` questions, with its 95 percent confidence interval, and all `metrics` by their names.

    `chance` is the accuracy of guessing. Both are `None` for a task that has no accuracy, or no choices.
    """

    name: str
    samples: int
    few_shot: int
    accuracy: float | None
    low: float | None
    high: float | None
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
        score = next((metrics[one] for one in _ACCURACIES if one in metrics), None)
        low = high = None
        if score is not None and score.stderr is not None:
            half = _NORMAL * score.stderr
            low, high = max(0.0, score.value - half), min(1.0, score.value + half)
        return cls(
            name=name,
            samples=samples,
            few_shot=few_shot,
            accuracy=None if score is None else score.value,
            low=low,
            high=high,
            chance=None if score is None else chance,
            metrics=metrics,
        )

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def kept_of(self, first: "TaskResult") -> dict[str, float | None]:
        """The share of the accuracy of `first` that is kept, and of what that has above chance; `None`: not defined."""
        kept = above = None
        if self.accuracy is not None and first.accuracy:
            kept = self.accuracy / first.accuracy
            if first.chance is not None and first.accuracy > first.chance:
                above = (self.accuracy - first.chance) / (first.accuracy - first.chance)
        return {"kept": kept, "kept_above_chance": above}


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


class LoadedTasks:
    """Tasks with their data; any number of models may run them."""

    def __init__(self, tasks: "Mapping[str, Task]", *, limit: int | None) -> None:
        self._tasks = tasks
        self._limit = limit

    def run(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[TaskResult]:
        """The results of all tasks, in order."""
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH_SIZE)
        results = []
        for name, task in self._tasks.items():
            with library_errors(f"the task {name} does not run on the model"):
                found = evaluate(
                    lm=harness,
                    task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
                    limit=self._limit,
                    bootstrap_iters=BOOTSTRAPS,
                    log_samples=True,
                )
            samples = found["samples"][name]
            results.append(
                TaskResult.of(
                    name,
                    found["results"][name],
                    samples=len({one["doc_id"] for one in samples}),
                    few_shot=int(task.get_config("num_fewshot") or 0),
                    chance=_chance(task, [one["doc"] for one in samples]),
                )
            )
        return results


def load_tasks(
    names: Sequence[str], *, directory: str | None, limit: int | None = None, few_shot: int | None = None
) -> LoadedTasks | None:
    """The tasks of `names`; `None` without any. `limit`: only so many questions of each.

    `few_shot` is the number of examples in the prompt; by default that of the task, or of the suite. Raises
    `InvalidInput` for a task that does not exist, or whose data are not in `directory`.
    """
    if not names:
        return None
    if find_spec("lm_eval") is None or find_spec("accelerate") is None:
        raise InvalidInput(
            "tasks need libraries that are not installed; install them with: pip install 'replaceme[tasks]'",
            field="evaluation.tasks",
        )
    os.environ["DISABLE_MULTIPROC"] = "1"  # the library would start a process for each core to estimate an error
    place = None if directory is None else Path(directory)
    with _inside(place):
        return LoadedTasks(_load(expanded(names), directory=place, few_shot=few_shot), limit=limit)


def tasks_of(request: RunnerRequest) -> LoadedTasks | None:
    """Those that the evaluation of a job asks for. Raises as `load_tasks` does."""
    asked = request.spec.evaluation
    directory = request.tasks_directory
    return load_tasks(asked.tasks, directory=directory, limit=asked.task_limit, few_shot=asked.few_shot)


def _load(names: Mapping[str, int | None], *, directory: Path | None, few_shot: int | None) -> "dict[str, Task]":
    """The tasks of `names`, and of the groups among them, with their data."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=directory, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):  # to read those of the library takes seconds
        manager = TaskManager(include_path=directory)
    loaded: dict[str, Task] = {}
    for name, usual in names.items():
        if name not in manager.all_tasks:
            where = "the library lm_eval" + (f" or {directory.name}" if directory is not None else "")
            raise InvalidInput(f"there is no task {name!r} in {where}", field="evaluation.tasks", value=name)
        try:
            tasks = manager.load([name])["tasks"]
        except Exception as error:  # the library and its data sets raise errors of any kind
            raise InvalidInput(
                f"the task {name} cannot be loaded: its data must be in the directory of the tasks, as a file that its "
                "YAML names in data_files, or as a copy of its data set in a folder org/name",
                field="evaluation.tasks",
                value=name,
            ).because(error) from error
        shots = usual if few_shot is None else few_shot
        for task in tasks.values():
            if shots is not None:
                task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=1234)  # that of the library's own command
        loaded |= tasks
    return loaded


@contextlib.contextmanager
def _inside(directory: Path | None) -> Iterator[None]:
    """Work in `directory`, to which paths of data are relative; without one in an empty directory."""
    if directory is not None:
        with contextlib.chdir(directory):
            yield
        return
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        yield


def _chance(task: "Task", documents: Sequence[Any]) -> float | None:
    """The accuracy of guessing; `None` for a task without choices."""
    if task.OUTPUT_TYPE != "multiple_choice" or not documents:
        return None
    return sum(1 / len(task.doc_to_choice(document)) for document in documents) / len(documents)
