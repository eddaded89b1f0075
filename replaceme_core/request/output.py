"""Where a result may go: into which namespaces, over what, and whether in public.

The write token is the operator's, and every job uses it. So a job creates repositories, and replaces none but earlier
results of its own owner, unless the operator allows more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from replaceme_core.errors import InvalidInput
from replaceme_core.hub.port import ExistingOutput, Hub
from replaceme_core.request.fields import REPOSITORY
from replaceme_core.request.spec import OutputSpec

RESERVED_NAMESPACES = frozenset({"api", "buckets", "datasets", "kernels", "models", "spaces"})
"""The Hub begins other addresses with these."""


Names = TypeVar("Names", bound=Sequence[str] | None)


def check_namespaces(names: Names) -> Names:
    """`names` as they are. Raises `ValueError` for one that is no user or organisation of the Hub."""
    for name in () if names is None else names:
        if not REPOSITORY.fullmatch(f"{name}/x") or name.lower() in RESERVED_NAMESPACES:
            raise ValueError(f"expected users or organisations of the Hub, got {name!r}")
    return names


@dataclass(frozen=True, kw_only=True)
class OutputRules:
    """What an operator allows of outputs (settings of the same names), and which results are the caller's own.

    `namespaces`: where results may go, and first where those go that name no repository; `None`: that of the write
    token. `is_own` is asked with a job and the repository that names it as its maker.
    """

    namespaces: tuple[str, ...] | None = None
    allow_overwrite: bool = False
    allow_publishing_private: bool = False
    is_own: Callable[[str, str], bool] = lambda job_id, repo_id: False

    def check_replacement(self, output: OutputSpec, existing: ExistingOutput) -> None:
        """Raises `InvalidInput` unless a result may take the place of what is there."""
        if output.private and existing.stays_public:
            raise InvalidInput(
                f"{existing.repo_id} exists and is public, so the result would be public too; name another repository, "
                "or say private: false",
                field="output.private",
                value=output.private,
            )
        if output.create_pr:
            return
        own = existing.job_id is not None and self.is_own(existing.job_id, existing.repo_id)
        if existing.is_empty or own or (output.overwrite and self.allow_overwrite):
            return
        remedy = ", or say overwrite: true to replace all of it" if self.allow_overwrite else ""
        raise InvalidInput(
            f"{existing.repo_id} exists already and is not an earlier result of yours; name another repository{remedy}",
            field="output.repo_id",
            value=existing.repo_id,
        )


def default_namespace(hub: Hub, rules: OutputRules) -> str:
    """The owner of results that name no repository."""
    return rules.namespaces[0] if rules.namespaces else hub.namespace()


def check_output(output: OutputSpec, hub: Hub, *, rules: OutputRules, private_source: str | None) -> None:
    """Raises `InvalidInput` (field `output.repo_id`, `output.private`, ...) for what may not be.

    `output` has a name. `private_source` is a source of the result that is private on the Hub, if there is one.
    """
    assert output.repo_id is not None
    namespace, _, _ = output.repo_id.partition("/")
    if namespace.lower() in RESERVED_NAMESPACES:
        raise InvalidInput(
            f"{namespace!r} is no owner of repositories on the Hub; a result is a model, named as org/name",
            field="output.repo_id",
            value=output.repo_id,
        )
    allowed = rules.namespaces or (hub.namespace(),)
    if namespace not in allowed:
        raise InvalidInput(
            f"this service publishes under {' and '.join(allowed)} only; its operator can allow others with "
            "REPLACEME_OUTPUT_NAMESPACES",
            field="output.repo_id",
            value=output.repo_id,
        )
    if output.overwrite and not rules.allow_overwrite:
        raise InvalidInput(
            "this service replaces no repositories except your own earlier results, which needs no overwrite; leave it "
            "out, or ask the operator to set REPLACEME_ALLOW_OVERWRITE",
            field="output.overwrite",
            value=True,
        )
    if private_source is not None and not output.private and not rules.allow_publishing_private:
        raise InvalidInput(
            f"{private_source} is private, so the result must be too; leave out private: false, or ask the operator to "
            "set REPLACEME_ALLOW_PUBLISHING_PRIVATE",
            field="output.private",
            value=False,
        )
    if output.create_pr and not hub.has_pull_requests:
        raise InvalidInput(
            "a directory hub has no pull requests; leave create_pr out", field="output.create_pr", value=True
        )
    existing = hub.find_output(output.repo_id)
    if output.create_pr and existing is None:
        raise InvalidInput(
            f"there is no {output.repo_id} to make a pull request on; leave create_pr out to create it",
            field="output.create_pr",
            value=True,
        )
    if existing is not None:
        rules.check_replacement(output, existing)
