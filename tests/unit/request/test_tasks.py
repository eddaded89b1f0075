"""Tasks that cannot be run are found from their YAML files, without the library."""

from pathlib import Path

import pytest

from replaceme_core.errors import InvalidInput
from replaceme_core.request.tasks import check_tasks
from tests.fixtures.evaluation.local_tasks import CHOICE, OF_A_DATA_SET, ROLLING, write_tasks

OURS = (CHOICE, ROLLING, OF_A_DATA_SET)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "tasks")


def refused(name: str, directory: Path | None) -> str:
    with pytest.raises(InvalidInput) as raised:
        check_tasks([name], directory)
    assert (raised.value.field, raised.value.value) == ("evaluation.tasks", name)
    assert directory is None or str(directory) not in raised.value.message, "a path of the server"
    return raised.value.message


def test_data_that_are_there_or_not(tasks: Path) -> None:
    check_tasks(OURS, tasks)
    check_tasks((), None)
    assert "--tasks-dir DIR" in refused(CHOICE, None)
    assert "there is no task 'no_such'" in refused("no_such", tasks)
    (tasks / "questions.jsonl").unlink()
    (tasks / "org").rename(tasks / "elsewhere")
    assert "reads questions.jsonl, which is not in the directory" in refused(CHOICE, tasks)
    assert "hf download org/questions --repo-type dataset --local-dir DIR/org/questions" in refused(
        OF_A_DATA_SET, tasks
    )
    (tasks / "org" / "questions").mkdir(parents=True)
    assert "hf download" in refused(OF_A_DATA_SET, tasks), "a folder without anything in it"
    check_tasks([ROLLING], tasks)


@pytest.mark.parametrize(
    ("files", "is_there"),
    [
        ("[texts.jsonl, '*.jsonl']", True),
        ("{test: [texts.jsonl]}", True),
        ("/nowhere/texts.jsonl", False),
        ("https://example.org/texts.jsonl", False),
        ("{train: texts.jsonl, test: none-*.jsonl}", False),
    ],
)
def test_how_files_are_named(tasks: Path, files: str, is_there: bool) -> None:
    (tasks / "mine.yaml").write_text(f"task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {files}}}\n")
    if is_there:
        check_tasks(["mine"], tasks)
    else:
        assert "is not in the directory of the tasks" in refused("mine", tasks)


def test_groups_tags_and_included_files(tasks: Path) -> None:
    (tasks / "_template").write_text("tag:\n  - mine_all\n  - others\ndataset_path: org/questions\n")
    (tasks / "a.yaml").write_text("task: mine_a\ninclude: _template\nprocess_results: !function utils.score\n")
    (tasks / "b.yaml").write_text("'task': 'mine_b'\ninclude: [_template]\ndataset_path: org/none\n")
    (tasks / "group.yaml").write_text(f"group: mine\ntask:\n  - {CHOICE}\n  - task: mine_b\n    num_fewshot: 2\n")
    check_tasks(["mine_a", "mine_all", "others"], tasks)
    for name in ("mine_b", "mine"):
        assert "reads the data set org/none" in refused(name, tasks)


@pytest.mark.parametrize(
    "text", ["task: mine\n\t- [", "task: mine\ninclude: none.yaml", "task: mine\ninclude: mine.yaml"]
)
def test_a_file_that_cannot_be_read(tasks: Path, text: str) -> None:
    (tasks / "mine.yaml").write_text(text)
    assert refused("mine", tasks) == "the task mine cannot be read from mine.yaml"


def test_tasks_of_the_library(tasks: Path) -> None:
    """Its own files say which data they read, and a file of ours goes first."""
    assert "reads the data set baber/piqa, which is not on this machine" in refused("piqa", tasks)
    (tasks / "baber" / "piqa").mkdir(parents=True)
    (tasks / "baber" / "piqa" / "dev.jsonl").write_text("{}")
    check_tasks(["piqa"], tasks)
    assert "allenai/sciq" in refused("sciq", tasks)
    (tasks / "sciq.yaml").write_text("task: sciq\ndataset_path: org/questions\n")
    check_tasks(["sciq"], tasks)
    with pytest.raises(InvalidInput, match="reads the data set"):
        check_tasks(["replaceme_paper"], tasks)
