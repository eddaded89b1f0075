"""What `replaceme serve` and `worker` decide before they start a process: addresses, the key of this machine, GPUs."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from api.cli.launch import answered_hosts, check_broker, plan_workers, provide_api_key, work, work_once
from api.http.callers import check_exposure
from replaceme_core.errors import InvalidInput
from replaceme_core.ledger.database import Database
from replaceme_core.ledger.keys import Keys, NewKey, Scope, hash_of, new_key
from replaceme_core.ledger.migrate import upgrade
from replaceme_core.settings import Settings

NOTHING_IS_READ = "sqlite:////dev/null/no-database"


def settings(database_url: str = NOTHING_IS_READ, **values: object) -> Settings:
    return Settings.model_validate(
        {"allow_unauthenticated": False, "allowed_hosts": None, "database_url": database_url, **values}
    )


def test_other_addresses_need_a_live_key_of_a_person_or_the_operators_word(
    sqlite_url: str, sqlite_database: Database
) -> None:
    def create(*, is_local: bool) -> str:
        new = NewKey(owner="a", name="n", scopes=frozenset({Scope.ADMIN}), is_local=is_local)
        with sqlite_database.session() as session:
            return Keys(session).create(new).id

    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost", "no.such.host.invalid"):  # the last is for the socket
        check_exposure(host, settings())
    others = ("0.0.0.0", "::", "", "203.0.113.1", "::ffff:10.0.0.1", "0")

    def require_refusal() -> None:
        for host in others:
            with pytest.raises(InvalidInput, match=r"replaceme keys create.*REPLACEME_ALLOW_UNAUTHENTICATED=true"):
                check_exposure(host, settings(sqlite_url))

    create(is_local=True)
    require_refusal()
    key_id = create(is_local=False)
    for host in others:
        check_exposure(host, settings(sqlite_url))
        check_exposure(host, settings(allow_unauthenticated=True))
        check_exposure(host, settings(require_key=True))
    with sqlite_database.session() as session:
        Keys(session).revoke(key_id)
    require_refusal()


@pytest.mark.parametrize(
    "url", ["http://x", "a.b://x", "word", "amqp://x", "redis://127.0.0.1:1/x", "redis://127.0.0.1:1/0?x=y"]
)
def test_a_broker_that_no_message_can_be_sent_to(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"must be redis://HOST:PORT/NUMBER or filesystem://") as refused:
        check_broker(settings(broker_url=url))
    assert refused.value.field == "broker_url"


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


def test_serve_makes_one_key_for_this_machine(tmp_path: Path) -> None:
    here = Settings.model_validate({"data": tmp_path / "data"})
    upgrade(here.resolved_database_url)

    def provided() -> str:
        provide_api_key(here)
        return here.api_key_file.read_text().strip()

    def live(text: str) -> bool:
        database = Database(here.resolved_database_url)
        with database.session(read_only=True) as session:
            found = Keys(session).find_live(hash_of(text))
            assert not Keys(session).is_any_issued()
        database.close()
        return found is not None

    first = provided()
    assert stat.S_IMODE(here.api_key_file.stat().st_mode) == 0o600
    assert live(first)
    assert provided() == first
    here.api_key_file.unlink()
    second = provided()
    assert live(second) and not live(first)
    here.api_key_file.write_text(new_key())  # of another database
    assert live(provided()) and not live(second)


@pytest.mark.parametrize(
    ("count", "gpus", "visible", "expected"),
    [
        (3, None, "3", {"cpu": ""}),
        (3, "all", None, {"gpu0": "0", "gpu1": "1", "gpu2": "2"}),
        (3, "2, 0", None, {"gpu2": "2", "gpu0": "0"}),
        (3, "all", "5,7,1", {"gpu0": "5", "gpu1": "7", "gpu2": "1"}),
        (3, "1", "GPU-aa,GPU-bb,GPU-cc", {"gpu1": "GPU-bb"}),
        (3, "1", "", {"gpu1": "1"}),
        (3, "3", None, "there is no GPU 3: this machine has GPUs 0 to 2"),
        *((3, gpus, None, "expected all, or GPU numbers") for gpus in ("-1", "", "cuda:0")),
        (3, "0,0", None, "appears twice"),
        # of the slices of a GPU CUDA shows one
        (1, "all", "MIG-a,MIG-b", {"gpu0": "MIG-a", "gpu1": "MIG-b"}),
        (1, "1", "MIG-a, MIG-b", {"gpu1": "MIG-b"}),
        (1, "all", None, {"gpu0": "0"}),
        (1, "all", "GPU-a,GPU-b", {"gpu0": "GPU-a"}),
        (1, "1", "5,7", "there is no GPU 1: this machine has GPU 0"),
        (1, "2", "MIG-a,MIG-b", "there is no GPU 2: this machine has GPUs 0 to 1"),
    ],
)
def test_one_worker_for_each_gpu(count: int, gpus: str | None, visible: str | None, expected: object) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    if isinstance(expected, str):
        with pytest.raises(InvalidInput, match=expected):
            plan_workers(gpus, environ, count=lambda: count)
    else:
        assert plan_workers(gpus, environ, count=lambda: count) == expected


def test_all_gpus_where_there_is_none() -> None:
    with pytest.raises(InvalidInput, match="torch sees no GPU"):
        plan_workers("all", {}, count=lambda: 0)
    with pytest.raises(InvalidInput, match="torch sees no GPU"):
        plan_workers("all", {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}, count=lambda: 0)


@pytest.mark.parametrize("run", [work, work_once])
def test_no_worker_where_another_module_would_be_imported(
    run: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=r"worker\.py would be imported in place of the service's own module"):
        run(gpus="none", settings=settings(), environ={})  # that would be refused too, so that no process starts
