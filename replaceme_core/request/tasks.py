"""Tasks of the lm-evaluation-harness: their names and sizes, and which of them can be run here.

A task can be run if its YAML file and data are on this machine. The files are read as that library reads them, without
importing it or torch, so that a submission is answered at once. What is inside the data, the library finds when it
loads them. Where it is not installed, only the operator's own tasks are known; a worker looks at the others.
"""

import glob
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, StringConstraints

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.port import REPOSITORY
from replaceme_core.request.fields import as_tuple, length


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a task is named twice")
    return names


TaskName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
TaskNames = Annotated[tuple[TaskName, ...], BeforeValidator(as_tuple), AfterValidator(_different), length(0, 64)]
PAPER = "replaceme_paper"


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """Of a task: its `questions`, the `choices` of each that are read one by one, and the `tokens` of one reading.

    `few_shot` is the number of examples in the prompt, where the suite has another one than the task.
    """

    questions: int
    choices: int
    tokens: int
    few_shot: int | None = None


PAPER_TASKS: Mapping[str, TaskSize] = {
    "race": TaskSize(questions=1045, choices=4, tokens=450),
    "winogrande": TaskSize(questions=1267, choices=2, tokens=30, few_shot=5),
    "piqa": TaskSize(questions=1838, choices=2, tokens=40),
    "boolq": TaskSize(questions=3270, choices=2, tokens=150),
    "openbookqa": TaskSize(questions=500, choices=4, tokens=20),
    "sciq": TaskSize(questions=1000, choices=4, tokens=115),
    "lambada_openai": TaskSize(questions=5153, choices=1, tokens=90),
}
OTHER = TaskSize(questions=2000, choices=4, tokens=60)
"""A task whose size is not known here."""


def expanded(names: Sequence[str]) -> dict[str, int | None]:
    """The tasks of `names`, without the name of the suite, each with its number of examples in the prompt.

    >>> list(expanded(["sciq", "replaceme_paper"]))[:3]
    ['sciq', 'race', 'winogrande']
    >>> expanded(["replaceme_paper", "winogrande"]) == expanded(["winogrande", "replaceme_paper"])
    True
    """
    found: dict[str, int | None] = {}
    for name in names:
        of_suite = {one: size.few_shot for one, size in PAPER_TASKS.items()}
        found |= of_suite if name == PAPER else {name: found.get(name)}
    return found


def task_tokens(names: Sequence[str], *, limit: int | None, few_shot: int | None) -> int:
    """The tokens that one model reads in these tasks. An example in the prompt is as long as a question.

    >>> task_tokens(["piqa"], limit=10, few_shot=None)
    800
    """
    total = 0
    for name, usual in expanded(names).items():
        size = PAPER_TASKS.get(name, OTHER)
        shots = (usual or 0) if few_shot is None else few_shot
        questions = size.questions if limit is None else min(limit, size.questions)
        total += questions * size.choices * size.tokens * (1 + shots)
    return total


_DECLARED = re.compile(
    r"""^['"]?(?:task|group)['"]?:[ ]*['"]?([\w.-]+) | ^['"]?tag['"]?:((?:\s+(?:-[ ]+)?['"]?[\w.-]+['"]?)+)[ ]*$""",
    re.MULTILINE | re.VERBOSE,
)
_WORD = re.compile(r"\w[\w.-]*")
_TYPE_OF_YAML = re.compile(r"(?<=[ :\[,])![\w.]+ ")
"""Such as that of `!function utils.score`, which only the library resolves."""
_SUFFIXES = (".yaml", "")
"""Files that others include, and that may declare tags for them, have none."""
_FIELD = "evaluation.tasks"


def check_tasks(names: Sequence[str], directory: str | Path | None) -> None:
    """Raise `InvalidInput` for one of `names` that is no task, or whose data are not in `directory`."""
    if not names:
        return
    if directory is None:
        raise InvalidInput(
            "tasks read their data from a directory, and none is named: give --tasks-dir DIR; the operator of a "
            "service sets REPLACEME_TASKS_DIRECTORY, for API and workers",
            field=_FIELD,
            value=names[0],
        )
    place, library = Path(directory), _of_library()
    known = {**library, **_declared(place)}
    for name in expanded(names):
        if name not in known and library:
            raise InvalidInput(
                f"there is no task {name!r} in the library lm_eval or {place.name}", field=_FIELD, value=name
            )
        for settings in _settings_of(name, known, set(), asked=name):
            if (problem := _problem(name, settings, place)) is not None:
                raise InvalidInput(problem, field=_FIELD, value=name)


@cache
def _of_library() -> Mapping[str, Sequence[Path]]:
    """The tasks, groups and tags of lm_eval, with the files that declare them; nothing where it is not installed."""
    found = find_spec("lm_eval")
    places = [] if found is None else found.submodule_search_locations or []
    return {name: paths for place in places for name, paths in _declared(Path(place) / "tasks").items()}


def _declared(place: Path) -> dict[str, list[Path]]:
    """The files under `place` by the tasks, groups and tags that they declare; of thousands, none is parsed."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(path for path in place.rglob("*") if path.suffix in _SUFFIXES and path.is_file()):
        for name, tags in _DECLARED.findall(path.read_text(encoding="utf-8", errors="replace")):
            for one in [name] if name else _WORD.findall(tags):
                found[one].append(path)
    return dict(found)


def _settings_of(
    name: str, known: Mapping[str, Sequence[Path]], seen: set[Path], *, asked: str
) -> Iterator[dict[str, Any]]:
    """The settings of the task `name`, or of those that the group or tag has; the request has the name `asked`."""
    for path in known.get(name, ()):
        if path in seen:
            continue
        seen.add(path)
        try:
            settings = _read(path)
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            message = f"the task {asked} cannot be read from {path.name}"
            raise InvalidInput(message, field=_FIELD, value=asked).because(error) from error
        members = settings.get("task")
        if not isinstance(members, list):
            yield settings
            continue
        for member in members:
            one = member.get("task") if isinstance(member, dict) else member
            if isinstance(one, str):
                yield from _settings_of(one, known, seen, asked=asked)


def _read(path: Path) -> dict[str, Any]:
    """The settings in a YAML file and in those that it includes, which it overrides. Raises `ValueError` as well."""
    found = yaml.safe_load(_TYPE_OF_YAML.sub("", path.read_text(encoding="utf-8")))
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no mapping")  # noqa: TRY004 - of the file, not of a caller
    included = found.pop("include", [])
    settings: dict[str, Any] = {}
    for one in included if isinstance(included, list) else [included]:
        settings |= _read(path.parent / str(one))
    return settings | found


def _problem(name: str, settings: Mapping[str, Any], place: Path) -> str | None:
    """What a task with these settings lacks, and how it is brought here: a runner downloads nothing."""
    data_set, options = settings.get("dataset_path"), settings.get("dataset_kwargs")
    if not isinstance(data_set, str) or not data_set:
        return None  # its own code has the data
    if REPOSITORY.fullmatch(data_set):
        folder = place / data_set
        if folder.is_dir() and any(folder.iterdir()):
            return None
        return (
            f"the task {name} reads the data set {data_set}, which is not on this machine. Put it into a directory DIR "
            f"with: hf download {data_set} --repo-type dataset --local-dir DIR/{data_set}, and name that directory: "
            "--tasks-dir DIR, or REPLACEME_TASKS_DIRECTORY of a service"
        )
    files = [*_texts(options.get("data_files"))] if isinstance(options, dict) else []
    missing = [file for file in files if not glob.glob(str(place / file))]  # noqa: PTH207 - paths too
    if missing:
        return f"the task {name} reads {missing[0]}, which is not in the directory of the tasks"
    if files or (place / data_set).exists():
        return None
    return (
        f"the task {name} reads {data_set}, which is not in the directory of the tasks: its data must be there, as "
        "files that its YAML names in data_files, or as a copy of its data set in a folder org/name"
    )


def _texts(value: object) -> Iterator[str]:
    """All texts in lists and mappings of any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)
