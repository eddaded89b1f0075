"""From a request to a specification, and where its result may go, over a directory that acts as the Hub."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks.harness.fake_hub.access import READ_TOKEN
from benchmarks.harness.fake_hub.server import FakeHub
from benchmarks.harness.stub_model import stub_weights
from replaceme_core.errors import AccessDenied, CalibrationTooSmall, InvalidInput, LimitExceeded
from replaceme_core.hub.directory import DirectoryHub
from replaceme_core.hub.huggingface import HuggingFaceHub
from replaceme_core.hub.port import ExistingOutput
from replaceme_core.request.admission import (
    NO_SIZE_LIMITS,
    OutputRules,
    SizeLimits,
    admit_model,
    check_output,
    find_model,
    find_text,
    resolve_request,
)
from replaceme_core.request.spec import CompressionRequest, CompressionSpec, HealSpec, ModelRef, OutputSpec
from replaceme_core.settings import Settings
from tests.fixtures.api.requests import SMALLEST, put_dataset, put_model
from tests.fixtures.servers.hub import HubSide, SocketSide, nothing, publication

STRICT = OutputRules()
JOB_ID = "0123abcd-0000-4000-8000-000000000000"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "hub"
    put_model(root, "org/name", blocks=30)
    put_dataset(root, "org/data")
    put_dataset(root, "org/more")
    return root


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    texts = tmp_path / "texts"
    (texts / "deep").mkdir(parents=True)
    (texts / "deep" / "some text.txt").write_text("words")
    (texts / "empty.txt").touch()
    (texts / "folder.txt").mkdir()
    (tmp_path / "outside.txt").write_text("secret")
    (texts / "out.txt").symlink_to(tmp_path / "outside.txt")
    (texts / "up").symlink_to(tmp_path)
    (texts / "in.txt").symlink_to(texts / "deep" / "some text.txt")
    (texts / "loop.txt").symlink_to(texts / "loop.txt")
    return texts


def resolve(
    root: Path,
    *,
    texts: Path | None = None,
    rules: OutputRules = STRICT,
    limits: SizeLimits = NO_SIZE_LIMITS,
    **changes: object,
) -> CompressionSpec:
    request = CompressionRequest.model_validate({**SMALLEST, **changes})
    return resolve_request(
        request, DirectoryHub(root), calibration_root=texts, job_id=JOB_ID, rules=rules, limits=limits
    )


def test_revisions_are_pinned(root: Path) -> None:
    spec = resolve(root, calibration="org/data")
    again = resolve(root, model={"repo_id": "org/name", "revision": spec.model.revision}, calibration="org/data")
    assert spec.model.revision is not None
    assert len(spec.model.revision) == 40
    assert spec.calibration.revision is not None
    assert len(spec.calibration.revision) == 40
    assert again == spec
    (root / "org/name/LICENSE").write_text("changed")
    assert resolve(root).model.revision != spec.model.revision


def test_each_source_of_a_mix_is_pinned(root: Path, texts: Path) -> None:
    (texts / "some.txt").write_text("words")
    sources = ["org/data", "builtin:code", {"self_generated": True, "share": 0.25}, "file:some.txt", "org/more"]
    found = resolve(root, texts=texts, calibration=sources).calibration
    revisions = [source.revision for source in found.mix]
    assert [revision is not None and len(revision) == 40 for revision in revisions] == [True, False, False, False, True]
    assert [source.share for source in found.mix] == [0.1875, 0.1875, 0.25, 0.1875, 0.1875]
    assert revisions[0] == resolve(root, calibration="org/data").calibration.revision


def test_a_text_to_train_on_is_pinned_and_limited(root: Path) -> None:
    heal = {"tokens": 5000, "dataset": {"dataset": "org/data"}}
    found = resolve(root, heal=heal)
    data = resolve(root, calibration="org/data").calibration
    assert [source.revision for source in found.texts] == [None, data.revision]
    request = CompressionRequest.model_validate({**SMALLEST, "heal": heal})
    SizeLimits(tokens=2_000_000).check_tokens(request)
    with pytest.raises(LimitExceeded) as caught:
        SizeLimits(tokens=2_000_000).check_tokens(request.model_copy(update={"heal": HealSpec(tokens=2_000_001)}))
    assert caught.value.field == "heal.tokens"


def test_a_result_is_named_after_what_is_left(root: Path) -> None:
    assert resolve(root).output.repo_id == "local/name-22of30-0123abcd"
    assert resolve(root, ratio=None, drop=[4, 9]).output.repo_id == "local/name-28of30-0123abcd"
    assert resolve(root, output="local/mine").output.repo_id == "local/mine"
    search = {"ratio": {"max": 0.5}, "gate": {"size_ratio": {"max": 0.9}}}
    assert resolve(root, **search).output.repo_id == "local/name-0123abcd", "how many stay is found out later"
    there = OutputRules(namespaces=("me", "local"))
    assert resolve(root, rules=there).output.repo_id == "me/name-22of30-0123abcd"
    assert resolve(root, rules=there, credential="mine").output.repo_id == "local/name-22of30-0123abcd"
    with pytest.raises(InvalidInput, match="under me only, and the token of this credential belongs to local: name"):
        resolve(root, rules=OutputRules(namespaces=("me",)), credential="mine")
    name = "n" * 70 + "-" * 1 + "m" * 25
    put_model(root, f"org/{name}")
    repo_id = resolve(root, model=f"org/{name}").output.repo_id
    assert CompressionRequest.model_validate({**SMALLEST, "output": repo_id}).output.repo_id == repo_id, "short enough"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "org/none"}, "model"),
        ({"model": {"repo_id": "org/name", "revision": "0" * 40}}, "model"),
        ({"ratio": None, "drop": [30]}, "drop"),
        ({"calibration": "org/none"}, "calibration"),
        ({"calibration": {"dataset": "org/data", "split": "test"}}, "calibration.split"),
        ({"calibration": {"dataset": "org/data", "config": "en"}}, "calibration.config"),
        ({"calibration": {"dataset": "builtin:pydoc-topics", "revision": "main"}}, "calibration.revision"),
        ({"calibration": "file:some.txt"}, "calibration"),
        ({"calibration": ["org/data", "org/none"]}, "calibration.sources.1.dataset"),
        ({"calibration": ["org/data", {"dataset": "org/more", "split": "test"}]}, "calibration.sources.1.split"),
        ({"calibration": ["org/data", {"dataset": "builtin:code", "config": "en"}]}, "calibration.sources.1.config"),
        ({"calibration": ["org/data", {"dataset": "org/data", "revision": "main"}]}, "calibration.sources.1.dataset"),
        ({"output": "ORG/name"}, "output.repo_id"),
        ({"heal": {"tokens": 9, "dataset": "org/none"}}, "heal.dataset"),
        ({"heal": {"tokens": 9, "dataset": {"dataset": "org/data", "split": "test"}}}, "heal.dataset.split"),
        ({"heal": {"tokens": 9, "dataset": "file:some.txt"}}, "heal.dataset"),
    ],
)
def test_what_the_client_can_fix_names_its_field(root: Path, changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(root, **changes)
    assert caught.value.field == field
    assert caught.value.value is not None


@pytest.mark.parametrize("name", ["deep/some text.txt", "in.txt"])
def test_texts_under_the_root_are_found(root: Path, texts: Path, name: str) -> None:
    assert find_text(f"file:{name}", texts).read_text() == "words"
    assert resolve(root, texts=texts, calibration=f"file:{name}").calibration.dataset == f"file:{name}"


def test_the_name_of_a_link_says_the_format(texts: Path) -> None:
    """As in a cache of the Hub, whose files are links to names without a suffix."""
    (texts / "0123abcd").write_text('{"text": "words"}')
    (texts / "rows.jsonl").symlink_to("0123abcd")
    assert find_text("file:rows.jsonl", texts).name == "rows.jsonl"


@pytest.mark.parametrize(
    "name",
    [
        *("none.txt", "folder.txt", "out.txt", "up/outside.txt", "loop.txt", "../outside.txt", "in.txt/x.txt"),
        *("deep/../../outside.txt", "nul\0.txt", "n" * 5000 + ".txt", "\ud800.txt"),
    ],
)
def test_texts_elsewhere_are_not(texts: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="is not in the service's directory") as caught:
        find_text(f"file:{name}", texts)
    assert caught.value.field == "calibration"
    assert str(texts) not in caught.value.message


def test_a_text_that_is_empty_and_a_service_without_texts(texts: Path) -> None:
    with pytest.raises(CalibrationTooSmall):
        find_text("file:empty.txt", texts)
    with pytest.raises(InvalidInput, match="REPLACEME_CALIBRATION_ROOT"):
        find_text("file:a.txt", None)


@pytest.mark.skipif(not Path("/proc/sys").is_dir(), reason="a file system whose folders have no size")
def test_a_folder_without_a_size_is_not_empty() -> None:
    assert Path("/proc/sys").stat().st_size == 0
    assert find_text("file:sys/", Path("/proc")) == Path("/proc/sys")


def test_images_are_admitted_as_they_are_prepared(hub_side: HubSide) -> None:
    """As DINOv2 is published: it was trained on larger images than it is given."""
    sizes = {"num_hidden_layers": 12, "hidden_size": 8, "image_size": 518, "patch_size": 14}
    config = {"model_type": "dinov2", **sizes}
    cropped = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    files = {"config.json": config, "preprocessor_config.json": cropped}
    contents = {name: json.dumps(each).encode() for name, each in files.items()}
    hub_side.add_model("org/eyes", {**contents, "model.safetensors": stub_weights(12)})
    found = admit_model(find_model(ModelRef(repo_id="org/eyes"), hub_side.hub), hub_side.hub)
    assert found.outline.positions == 16 * 16 + 1


def test_an_image_counts_as_its_positions(root: Path) -> None:
    config = {"model_type": "vit", "num_hidden_layers": 12, "hidden_size": 8, "image_size": 224, "patch_size": 16}
    (root / "org" / "eyes").mkdir()
    (root / "org" / "eyes" / "config.json").write_text(json.dumps(config))
    (root / "org" / "eyes" / "model.safetensors").write_bytes(stub_weights(12))
    images = {"model": "org/eyes", "calibration": {"dataset": "org/data", "samples": 1000}}
    assert resolve(root, limits=SizeLimits(tokens=197_000), **images).calibration.samples == 1000
    with pytest.raises(LimitExceeded, match=r"1,000 samples are up to 197,000 tokens; .*: give fewer samples$"):
        resolve(root, limits=SizeLimits(tokens=196_999), **images)


OVERWRITES = OutputRules(allow_overwrite=True)


@pytest.fixture
def occupied(tmp_path: Path) -> Path:
    """A directory hub with `local/existing`, which somebody has put there by hand."""
    folder = tmp_path / "hub" / "local" / "existing"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return tmp_path / "hub"


def check(
    occupied: Path, repo_id: str, *, rules: OutputRules | None = None, source: str | None = None, **output: object
) -> None:
    spec = OutputSpec.model_validate({"repo_id": repo_id, **output})
    check_output(spec, DirectoryHub(occupied), rules=rules or OutputRules(), private_source=source)


@pytest.mark.parametrize(
    ("repo_id", "output", "source", "field", "words"),
    [
        (
            "local/existing",
            {},
            None,
            "output.repo_id",
            "or was changed since; name another",
        ),
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
    occupied: Path, repo_id: str, output: dict[str, object], source: str | None, field: str, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        check(occupied, repo_id, source=source, **output)
    assert caught.value.field == field


def test_what_is_allowed(occupied: Path) -> None:
    check(occupied, "local/new", private=False)
    check(occupied, "local/new", source="org/secret")
    check(occupied, "local/new", private=False, source="org/secret", rules=OutputRules(allow_publishing_private=True))
    check(occupied, "org/new", rules=OutputRules(namespaces=("me", "org")))
    check(occupied, "local/existing", overwrite=True, rules=OVERWRITES)
    with pytest.raises(InvalidInput, match="say overwrite: true"):
        check(occupied, "local/existing", rules=OVERWRITES)


def test_an_earlier_result_of_the_caller_is_replaced(occupied: Path, tmp_path: Path) -> None:
    made = publication(tmp_path / "made", {"config.json": b"{}"}, job_id="mine")
    DirectoryHub(occupied).publish(replace(made, repo_id="local/result"), before_commit=nothing)
    asked: list[tuple[str, str]] = []

    def is_own(job_id: str, repo_id: str) -> bool:
        asked.append((job_id, repo_id))
        return True

    check(occupied, "local/result", rules=OutputRules(is_own=is_own))
    assert asked == [("mine", "local/result")]
    (occupied / "local/result/notes.md").write_text("somebody's")
    with pytest.raises(InvalidInput, match="was changed since"):
        check(occupied, "local/result", rules=OutputRules(is_own=is_own))


def test_a_private_result_does_not_go_into_a_public_repository() -> None:
    """A pull request replaces nothing, but is as public as its repository."""
    for is_empty, create_pr in ((True, False), (False, True)):
        there = ExistingOutput(repo_id="me/open", is_empty=is_empty, stays_public=True, job_id=None)
        asked = OutputSpec(repo_id="me/open", create_pr=create_pr)
        with pytest.raises(InvalidInput, match="is public") as caught:
            STRICT.check_replacement(asked, there)
        assert caught.value.field == "output.private"
        STRICT.check_replacement(asked.model_copy(update={"private": False}), there)


def test_no_advice_makes_a_repository_of_others_a_target() -> None:
    """Also if it is public: with `private: false` it would be refused again."""
    there = ExistingOutput(repo_id="me/open", is_empty=False, stays_public=True, job_id=None)
    for private in (True, False):
        with pytest.raises(InvalidInput, match="exists already") as caught:
            STRICT.check_replacement(OutputSpec(repo_id="me/open", private=private), there)
        assert caught.value.field == "output.repo_id"


def test_namespaces_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLACEME_OUTPUT_NAMESPACES", "me, my-org ,")
    assert Settings(_env_file=None).output_namespaces == ("me", "my-org")  # type: ignore[call-arg]
    monkeypatch.setenv("REPLACEME_OUTPUT_NAMESPACES", "")
    assert Settings(_env_file=None).output_namespaces is None  # type: ignore[call-arg]
    for wrong in ("datasets", "a/b", "..", "me;you"):
        monkeypatch.setenv("REPLACEME_OUTPUT_NAMESPACES", wrong)
        with pytest.raises(ValidationError, match="users or organisations of the Hub"):
            Settings(_env_file=None)  # type: ignore[call-arg]


def test_without_a_write_token_nothing_is_admitted(fake_hub: FakeHub, tmp_path: Path) -> None:
    """Not even where the operator names the owners of results: nothing could be published in the end."""
    hub = HuggingFaceHub(fake_hub.url, read_token=READ_TOKEN, write_token=None, cache=tmp_path / "cache")
    asked = OutputSpec(repo_id="tester/out")
    with pytest.raises(AccessDenied, match="needs a write token, and none is set"):
        check_output(asked, hub, rules=OutputRules(namespaces=("tester",)), private_source=None)


def test_a_pull_request_needs_a_repository(socket_side: SocketSide) -> None:
    asked = OutputSpec(repo_id="tester/out", create_pr=True, private=False)
    with pytest.raises(InvalidInput, match="no tester/out to make a pull request on"):
        check_output(asked, socket_side.hub, rules=OutputRules(), private_source=None)
    socket_side.add_model("tester/out", {"config.json": b"theirs"})
    check_output(asked, socket_side.hub, rules=OutputRules(), private_source=None)
