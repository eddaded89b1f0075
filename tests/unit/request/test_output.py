"""Where a result may go, over a directory that acts as the Hub."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.port import ExistingOutput
from replaceme_core.request.admission import OutputRules, check_output
from replaceme_core.request.spec import OutputSpec
from replaceme_core.settings import Settings
from tests.fixtures.servers.hub import SocketSide

OVERWRITES = OutputRules(allow_overwrite=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory hub with `local/existing`, which somebody has put there by hand."""
    folder = tmp_path / "hub" / "local" / "existing"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return tmp_path / "hub"


def check(
    root: Path, repo_id: str, *, rules: OutputRules | None = None, source: str | None = None, **output: object
) -> None:
    spec = OutputSpec.model_validate({"repo_id": repo_id, **output})
    check_output(spec, DirectoryHub(root), rules=rules or OutputRules(), private_source=source)


@pytest.mark.parametrize(
    ("repo_id", "output", "source", "field", "words"),
    [
        ("local/existing", {}, None, "output.repo_id", "not an earlier result of yours; name another"),
        ("org/new", {}, None, "output.repo_id", "under local only"),
        ("Local/new", {}, None, "output.repo_id", "under local only"),
        ("datasets/new", {}, None, "output.repo_id", "no owner of repositories"),
        ("Spaces/new", {}, None, "output.repo_id", "no owner of repositories"),
        ("local/new", {"overwrite": True}, None, "output.overwrite", "REPLACEME_ALLOW_OVERWRITE"),
        ("local/existing", {"create_pr": True}, None, "output.create_pr", "a directory hub has no pull requests"),
        ("local/new", {"private": False}, "org/secret", "output.private", "org/secret is private"),
    ],
)
def test_what_is_refused(
    root: Path, repo_id: str, output: dict[str, object], source: str | None, field: str, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        check(root, repo_id, source=source, **output)
    assert caught.value.field == field


def test_what_is_allowed(root: Path) -> None:
    check(root, "local/new", private=False)
    check(root, "local/new", source="org/secret")
    check(root, "local/new", private=False, source="org/secret", rules=OutputRules(allow_publishing_private=True))
    check(root, "org/new", rules=OutputRules(namespaces=("me", "org")))
    check(root, "local/existing", overwrite=True, rules=OVERWRITES)
    with pytest.raises(InvalidInput, match="say overwrite: true"):
        check(root, "local/existing", rules=OVERWRITES)


@pytest.mark.parametrize("report", ["{", "[]", "{}", '{"job_id": null}', '{"job_id": 7}', '{"job_id": "other"}'])
def test_a_report_that_names_no_job_of_the_caller_is_no_proof(root: Path, report: str) -> None:
    (root / "local/existing/replaceme.json").write_text(report)
    with pytest.raises(InvalidInput, match="exists already"):
        check(root, "local/existing", rules=OutputRules(is_own=lambda job_id, repo_id: job_id == "mine"))


def test_an_earlier_result_of_the_caller_is_replaced(root: Path) -> None:
    (root / "local/existing/replaceme.json").write_text('{"job_id": "mine"}')
    asked: list[tuple[str, str]] = []

    def is_own(job_id: str, repo_id: str) -> bool:
        asked.append((job_id, repo_id))
        return True

    check(root, "local/existing", rules=OutputRules(is_own=is_own))
    assert asked == [("mine", "local/existing")]


def test_a_private_result_does_not_go_into_a_public_repository() -> None:
    empty = ExistingOutput(repo_id="me/open", is_empty=True, stays_public=True, job_id=None)
    with pytest.raises(InvalidInput, match="is public") as caught:
        OutputRules().check_replacement(OutputSpec(repo_id="me/open"), empty)
    assert caught.value.field == "output.private"
    OutputRules().check_replacement(OutputSpec(repo_id="me/open", private=False), empty)


def test_namespaces_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLACEME_OUTPUT_NAMESPACES", "me, my-org ,")
    assert Settings(_env_file=None).output_namespaces == ("me", "my-org")  # type: ignore[call-arg]
    monkeypatch.setenv("REPLACEME_OUTPUT_NAMESPACES", "")
    assert Settings(_env_file=None).output_namespaces is None  # type: ignore[call-arg]
    for wrong in ("datasets", "a/b", "..", "me;you"):
        monkeypatch.setenv("REPLACEME_OUTPUT_NAMESPACES", wrong)
        with pytest.raises(ValidationError, match="users or organisations of the Hub"):
            Settings(_env_file=None)  # type: ignore[call-arg]


def test_a_pull_request_replaces_nothing_but_is_as_public_as_its_repository() -> None:
    theirs = ExistingOutput(repo_id="me/theirs", is_empty=False, stays_public=True, job_id=None)
    OutputRules().check_replacement(OutputSpec(repo_id="me/theirs", private=False, create_pr=True), theirs)
    with pytest.raises(InvalidInput, match="is public"):
        OutputRules().check_replacement(OutputSpec(repo_id="me/theirs", create_pr=True), theirs)


def test_a_pull_request_needs_a_repository(socket_side: SocketSide) -> None:
    asked = OutputSpec(repo_id="tester/out", create_pr=True, private=False)
    with pytest.raises(InvalidInput, match="no tester/out to make a pull request on"):
        check_output(asked, socket_side.hub, rules=OutputRules(), private_source=None)
    socket_side.add_model("tester/out", {"config.json": b"theirs"})
    check_output(asked, socket_side.hub, rules=OutputRules(), private_source=None)
