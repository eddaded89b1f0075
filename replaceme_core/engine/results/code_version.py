"""Which code made a result: version, commit where it is known, and a digest of the sources."""

import json
from importlib.metadata import distribution
from pathlib import Path

import replaceme_core
from replaceme_core.engine.activations.content_key import code_digest

_CHECKOUT = Path(replaceme_core.__path__[0]).parent


def code_version() -> dict[str, str | None]:
    """`version`, `commit` (40 hex digits, or `None`) and `digest`, which differs after any local change."""
    found = distribution("replaceme")
    commit = _commit_of_checkout(_CHECKOUT) or _commit_of_url(found.read_text("direct_url.json"))
    return {"version": found.version, "commit": commit, "digest": code_digest()}


def _commit_of_checkout(root: Path) -> str | None:
    """What HEAD is in a checkout of ours. A repository that only has us in its virtual environment says nothing."""
    try:
        if 'name = "replaceme"' not in (root / "pyproject.toml").read_text(encoding="utf-8"):
            return None
        git = root / ".git"
        if git.is_file():  # of a second work tree
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        return _resolved(git, head.removeprefix("ref:").strip()) if head.startswith("ref:") else head
    except OSError:
        return None


def _resolved(git: Path, reference: str) -> str | None:
    common = git / "commondir"
    shared = git / common.read_text(encoding="utf-8").strip() if common.is_file() else git
    for place in (git, shared):
        if (place / reference).is_file():
            return (place / reference).read_text(encoding="utf-8").strip()
    packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), None)


def _commit_of_url(text: str | None) -> str | None:
    """The commit that pip has installed from a repository."""
    if text is None:
        return None
    commit = json.loads(text).get("vcs_info", {}).get("commit_id")
    return commit if isinstance(commit, str) else None
