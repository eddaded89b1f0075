"""Addresses that `replaceme serve` listens on."""

import pytest

from api.cli.launch import answered_hosts, check_exposure
from replaceme_core.errors import InvalidInput
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Keys, NewKey, Scope
from replaceme_core.settings import Settings

NOTHING_IS_READ = "sqlite:////dev/null/no-database"


def settings(database_url: str = NOTHING_IS_READ, **values: object) -> Settings:
    return Settings.model_validate(
        {"allow_unauthenticated": False, "allowed_hosts": None, "database_url": database_url, **values}
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_alone_needs_no_authentication(host: str) -> None:
    check_exposure(host, settings())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "203.0.113.1", "::ffff:10.0.0.1", "0"])
def test_other_addresses_need_a_key_or_the_operators_word(host: str, sqlite_url: str) -> None:
    with pytest.raises(InvalidInput, match="REPLACEME_ALLOW_UNAUTHENTICATED=true") as caught:
        check_exposure(host, settings(sqlite_url))
    assert caught.value.field == "host"
    check_exposure(host, settings(allow_unauthenticated=True))
    check_exposure(host, settings(require_key=True))


def test_only_a_live_key_of_a_person_opens_an_address(sqlite_url: str, sqlite_database: Database) -> None:
    def create(*, is_local: bool) -> str:
        new = NewKey(owner="a", name="n", scopes=frozenset({Scope.ADMIN}), is_local=is_local)
        with sqlite_database.session() as session:
            return Keys(session).create(new).id

    create(is_local=True)
    with pytest.raises(InvalidInput, match="replaceme keys create"):
        check_exposure("0.0.0.0", settings(sqlite_url))
    key_id = create(is_local=False)
    check_exposure("0.0.0.0", settings(sqlite_url))
    with sqlite_database.session() as session:
        Keys(session).revoke(key_id)
    with pytest.raises(InvalidInput, match="replaceme keys create"):
        check_exposure("0.0.0.0", settings(sqlite_url))


def test_a_name_that_leads_nowhere_is_left_to_the_socket() -> None:
    check_exposure("no.such.host.invalid", settings())


@pytest.mark.parametrize(
    ("host", "given", "expected"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("0.0.0.0", None, ""),
        ("", ("a.example",), "a.example"),
        ("::", ("a.example", "b.example"), "a.example,b.example"),
        ("10.0.0.1", ("a.example",), "a.example,10.0.0.1"),
        ("fe80::1%eth0", None, "fe80::1"),
    ],
)
def test_the_service_answers_to_the_host_that_it_listens_on(
    host: str, given: tuple[str, ...] | None, expected: str
) -> None:
    found = answered_hosts(settings(allowed_hosts=given), host)
    assert found == expected
    Settings.model_validate({"allowed_hosts": found})
