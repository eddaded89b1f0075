"""What begins with an earlier result and its `replaceme.json`, as the commands `replaceme reproduce` and `heal` do.

`reproduce` makes it again and compares the tensors, `heal` trains it toward its original without removing anything
again. The model and the texts that the record names are checked by checksum.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from pydantic import ValidationError

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.files import read_json_file, sha256_of
from replaceme_core.hub.model_files import files_to_download
from replaceme_core.hub.port import REPORT, Hub, RepositoryKind
from replaceme_core.local.compress import Outcome
from replaceme_core.local.inputs import looked_up, named_texts, outline_of, validated
from replaceme_core.local.run import Machine, ShowProgress, check_absent, show_nothing
from replaceme_core.report.reading import Report
from replaceme_core.request.admission import resolve_texts
from replaceme_core.request.method import Method
from replaceme_core.request.removal import ratio_of
from replaceme_core.request.resolve import check_inputs
from replaceme_core.request.spec import CompressionSpec, EvaluationSpec, HealSpec, Loading, OutputSpec
from replaceme_core.runner.inputs import Pinned, pin_text
from replaceme_core.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """How the tensors differ (`same`, `tensors`, `differing_tensors`, `differing`), and what was not as recorded."""

    comparison: Mapping[str, object]
    warnings: Sequence[str]


def reproduce(
    result: str,
    *,
    out: Path | None = None,
    model: Path | None = None,
    texts: Sequence[Path] = (),
    revision: str | None = None,
    device: str | None = None,
    settings: Settings | None = None,
    on_warning: Callable[[str], None] = lambda warning: None,
    on_progress: ShowProgress = show_nothing,
) -> Reproduction:
    """Make `result`, a directory or a repository of the Hub, again, and compare the tensors.

    `model` is the directory of the source, by default the recorded revision on the Hub; `texts` are those that were
    files, in their order. `out` keeps what comes out. Raises as `compress` does.
    """
    machine = Machine(settings, command="reproduce")
    with read_recorded(result, revision=revision, hub=machine.hub) as recorded:
        spec = recorded.spec
        files = (pin_model(spec, given=model, hub=machine.hub), *pin_texts(spec, given=texts, hub=machine.hub))
        if device is not None:
            spec = spec.model_copy(update={"compute": spec.compute.model_copy(update={"device": device})})
        warnings = _version_differences(recorded)
        if spec.method.time_budget_seconds is not None:
            warnings.append("its method had a limit of time, so it may choose otherwise at another speed")
        if spec.heal is not None and spec.heal.time_budget_seconds is not None:
            warnings.append("its training had a limit of time, so it may end elsewhere at another speed")
        for warning in warnings:
            on_warning(warning)
        finished = machine.make(
            spec,
            files,
            out=out,
            show=on_progress,
            check=recorded.check_model,
            check_texts=recorded.check_texts,
            compare_with=recorded.directory,
        )
    later = _run_differences(recorded, replace(recorded, report=finished.report))
    for warning in later:
        on_warning(warning)
    comparison = finished.report["comparison"]
    assert isinstance(comparison, dict)
    return Reproduction(comparison=comparison, warnings=(*warnings, *later))


def heal(
    result: str | Path,
    *,
    out: str | Path,
    heal: Mapping[str, Any],
    teacher: Path | None = None,
    texts: Sequence[Path] = (),
    revision: str | None = None,
    device: str | None = None,
    settings: Settings | None = None,
    on_progress: ShowProgress = show_nothing,
) -> Outcome:
    """Train `result`, a directory or a repository of the Hub, into the new directory `out`; it has a `replaceme.json`.

    `heal` is the field of `POST /jobs`. `teacher` is the directory of the original, by default the recorded revision on
    the Hub; `texts` are those of the calibration that were files, in their order. Raises as `compress` does.
    """
    machine, out = Machine(settings, command="heal", trains=True), Path(out).expanduser()
    check_absent(out)
    _, named, paths = named_texts("builtin:general", heal.get("dataset"))
    asked = validated(HealSpec, heal if named is None else {**heal, "dataset": named})
    with read_recorded(str(result), revision=revision, hub=machine.hub) as recorded:
        removed = recorded.report.get("removed_blocks")
        if not (isinstance(removed, list) and removed) or Report(recorded.report).is_true("healing", "is_kept"):
            raise InvalidInput(f"{result} was trained already, or does not say which blocks are gone", field="result")
        _check_digests(recorded.part("result"), recorded.directory, field="result")
        before, chosen = recorded.spec.model_copy(update={"heal": None}), recorded.report.get("chosen_method")
        _, found, _ = resolve_texts(before.calibration, asked, machine.hub, find_file=paths.get)
        method = before.method.model_copy(update={"groups": 1})  # of named blocks there are none
        # not how this machine's memory made the result read: where it was block by block, the model may fit here
        compute = before.compute.model_copy(update={"loading": Loading.AUTO, "device": device or before.compute.device})
        evaluation = EvaluationSpec(samples=before.evaluation.samples)
        changes = {"ratio": None, "drop": tuple(removed), "method": method, "compute": compute, "heal": found}
        spec = before.model_copy(update={**changes, "evaluation": evaluation})
        check_inputs(spec, outline_of(recorded.directory))
        model = pin_model(spec, given=teacher, hub=machine.hub, option="--teacher")
        files = (model, *pin_texts(before, given=texts, hub=machine.hub))
        if found is not None and found.source is not None:
            files = (*files, pin_text(found.source, machine.hub, paths.__getitem__))
        finished = machine.make(
            spec,
            files,
            out=out,
            show=on_progress,
            check=recorded.check_model,
            check_texts=lambda paths: recorded.check_texts(paths[: len(before.texts)]),
            pruned_directory=recorded.directory,
            pruned_by=chosen if chosen in tuple(Method) else None,
        )
    return Outcome.of(finished, spec=spec, directory=out)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A result in `directory`: its weights and the content of its `replaceme.json`."""

    directory: Path
    report: Mapping[str, object]

    @property
    def spec(self) -> CompressionSpec:
        """The resolved specification, without what does not decide the weights. Raises `InvalidInput`."""
        try:
            spec = CompressionSpec.model_validate(self.report.get("spec"))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, ("spec", *first["loc"])))
            raise InvalidInput(
                f"{REPORT} has no specification that this version can carry out: {place}: {first['msg']}",
                field="result",
            ) from error
        removed, kept = map(Report(self.report).blocks, ("removed_blocks", "kept_blocks"))
        if spec.searches:
            if not (removed and kept):
                raise InvalidInput(f"{REPORT} does not say which blocks the search has removed", field="result")
            found = ratio_of(len(removed), len(removed) + len(kept))
            spec = spec.model_copy(update={"ratio": found})
        evaluation = EvaluationSpec(enabled=False, samples=spec.evaluation.samples)
        return spec.model_copy(update={"evaluation": evaluation, "gate": None, "output": OutputSpec(), "labels": {}})

    def part(self, name: str) -> Mapping[str, object]:
        """An object in the report; empty if there is none."""
        found = self.report.get(name)
        return found if isinstance(found, dict) else {}

    def check_model(self, directory: Path) -> None:
        """Raises `InvalidInput` where a file of the model is not the recorded one, or it is no model."""
        _check_digests(self.part("model"), directory, field="model")
        outline_of(directory)

    def check_texts(self, paths: Sequence[Path | None]) -> None:
        """Raises `InvalidInput` where a text is not the recorded one. `paths` are those of the sources."""
        report = Report(self.report)
        for base, path in zip(report.places("calibration_texts"), paths, strict=False):
            files = report.at(*base, "files")
            if path is None or not isinstance(files, dict):
                continue
            if path.is_dir():
                _check_digests(files, path, field="calibration")
            elif files and sha256_of(path) not in files.values():
                raise _changed(path.name, field="calibration")


@contextmanager
def read_recorded(result: str, *, revision: str | None, hub: Callable[[], Hub]) -> Iterator[Recorded]:
    """The result in a directory, or in the repository of that name, whose download is kept until the block ends.

    Raises `InvalidInput`, and what a Hub raises.
    """
    with ExitStack() as holds:
        directory = Path(result).expanduser()
        if not directory.is_dir():
            with looked_up(result):
                snapshot = hub().resolve(result, kind=RepositoryKind.MODEL, revision=revision)
            if not snapshot.has(REPORT):
                raise InvalidInput(f"{result} has no {REPORT}, so it is no result of this tool", field="result")
            holds.enter_context(hub().hold(snapshot))
            directory = hub().download(snapshot, (REPORT, *files_to_download(snapshot, hub())))
        elif not (directory / REPORT).is_file():
            raise InvalidInput(f"{directory} has no {REPORT}, so it is no result of this tool", field="result")
        yield Recorded(directory=directory.resolve(), report=read_json_file(directory / REPORT, REPORT))


def pin_model(spec: CompressionSpec, *, given: Path | None, hub: Callable[[], Hub], option: str = "--model") -> Pinned:
    """The source: the directory that is `given` by the `option`, or the recorded revision on the Hub."""
    if given is not None:
        directory = given.expanduser().resolve()
        if not directory.is_dir():
            raise InvalidInput(
                f"there is no directory {directory}; name that of the original with {option}", field="model"
            )
        return Pinned(path=directory)
    if spec.model.revision is None:
        raise InvalidInput(
            f"the result was made from a model in a directory; name that directory with {option}", field="model"
        )
    snapshot = hub().resolve(spec.model.repo_id, kind=RepositoryKind.MODEL, revision=spec.model.revision)
    return Pinned(snapshot=snapshot, names=files_to_download(snapshot, hub()))


def pin_texts(spec: CompressionSpec, *, given: Sequence[Path], hub: Callable[[], Hub]) -> list[Pinned]:
    """The sources of the calibration text. `given` are those that are files, in their order.

    Raises `InvalidInput` where a file is missing, or is too many.
    """
    files = iter(given)

    def next_file(name: str) -> Path:
        path, what = next(files, None), "directory" if name.endswith("/") else "file"
        if path is None:
            raise InvalidInput(f"{name} is a {what}; name it with --text", field="calibration")
        path = path.expanduser()
        if not (path.is_dir() if what == "directory" else path.is_file()):
            raise InvalidInput(f"there is no {what} {path}", field="calibration", value=str(path))
        return path.resolve()

    pinned = [pin_text(source, hub, next_file) for source in spec.texts]
    if next(files, None) is not None:
        raise InvalidInput("--text is given more often than the result has texts in files", field="calibration")
    return pinned


def _version_differences(recorded: Recorded) -> list[str]:
    """A sentence for each library whose version here is not the recorded one."""
    found = []
    for name, before in recorded.part("versions").items():
        here = python_version() if name == "python" else _version(name)
        if here != before:
            found.append(f"{name} is {here or 'not installed'} here; the result was made with {before}")
    return found


def _run_differences(recorded: Recorded, again: Recorded) -> list[str]:
    """What else was not the same in both runs: code, device, numerics, tokens, blocks."""
    found = []
    for part in ("device", "numerics"):
        before, now = recorded.part(part), again.part(part)
        changed = [name for name in before if now.get(name) != before[name]]
        found += [f"{part}: {name} is {now.get(name)} here; recorded is {before[name]}" for name in changed]
    code = recorded.part("code")
    if code.get("digest") != again.part("code").get("digest"):
        found.append(f"the code of replaceme is not the recorded one (commit {code.get('commit') or 'not known'})")
    if any(
        again.part("tokens").get(name) != recorded.part("tokens").get(name) for name in ("fit", "held_out", "pixels")
    ):
        found.append("the calibration tokens are not the recorded ones")
    removed, removed_now = (one.report.get("removed_blocks") for one in (recorded, again))
    if removed != removed_now:
        found.append(f"blocks {removed_now} were removed; recorded is {removed}")
    return found


def _check_digests(digests: Mapping[str, object], directory: Path, *, field: str) -> None:
    for name, digest in digests.items():
        path = directory / Path(name).name if field == "model" else directory / name
        if ".." in Path(name).parts or Path(name).is_absolute() or not path.is_file():
            raise InvalidInput(f"{directory.name} has no file {name!r}, which is recorded", field=field)
        if sha256_of(path) != digest:
            raise _changed(name, field=field)


def _changed(name: str, *, field: str) -> InvalidInput:
    return InvalidInput(f"{name} is not the recorded file: its SHA-256 is another one", field=field, value=name)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except (PackageNotFoundError, ValueError):
        return None
