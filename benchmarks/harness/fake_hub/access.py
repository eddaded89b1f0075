"""Access rights on the fake Hub. Tokens look real, so that a test can search for them where they must not appear."""

from dataclasses import dataclass

from benchmarks.harness.fake_hub.store import Missing, Rejected, Repository

READ_TOKEN = "hf_testerREADwvQmZkLrT8"
WRITE_TOKEN = "hf_testerWRITEcXbNpQsU3"
STRANGER_TOKEN = "hf_strangerREADyHgFdSa1"


@dataclass(frozen=True)
class Caller:
    """`user` is None for a caller without a token."""

    user: str | None
    may_write: bool = False
    organisations: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return self.user is not None and namespace in (self.user, *self.organisations)


TOKENS = {
    READ_TOKEN: Caller("tester", organisations=("acme",)),
    WRITE_TOKEN: Caller("tester", may_write=True, organisations=("acme",)),
    STRANGER_TOKEN: Caller("stranger"),
}
ANONYMOUS = Caller(None)


def hub_environment(url: str) -> dict[str, str]:
    """Environment variables of a service that uses the fake Hub at `url`."""
    return {
        "REPLACEME_HUB": url,
        "REPLACEME_HUB_READ_TOKEN": READ_TOKEN,
        "REPLACEME_HUB_WRITE_TOKEN": WRITE_TOKEN,
        "REPLACEME_OUTPUT_NAMESPACES": "tester, acme",
        "HF_HUB_DISABLE_XET": "1",  # the fake Hub does not have the Xet protocol
    }


def caller_of(authorization: str | None) -> Caller:
    """The caller with this `Authorization` header. Raises `Rejected` for a header that is not valid."""
    if authorization is None:
        return ANONYMOUS
    scheme, _, token = authorization.partition(" ")
    if scheme != "Bearer" or token not in TOKENS:
        raise Rejected(401, "Invalid credentials in Authorization header")
    return TOKENS[token]


def check_read(caller: Caller, repository: Repository) -> None:
    """Whether the caller may see the repository and the list of its files."""
    if repository.private and not caller.owns(repository.owner):
        raise Missing("RepoNotFound", "Repository not found")
    if repository.disabled:
        raise Rejected(403, "Access to this resource is disabled.")


def check_read_files(caller: Caller, repository: Repository) -> None:
    """Whether the caller may read the files. As on the real Hub, all see the list of a gated repository."""
    check_read(caller, repository)
    if repository.gated and not caller.owns(repository.owner):
        raise Missing("GatedRepo", f"Access to model {repository.repo_id} is restricted")


def check_write(caller: Caller, namespace: str) -> None:
    if caller.user is None:
        raise Rejected(401, "Invalid username or password.")
    if not caller.may_write or not caller.owns(namespace):
        raise Rejected(403, f"You don't have the rights to write to the namespace {namespace!r}")
