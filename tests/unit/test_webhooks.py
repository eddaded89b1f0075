"""Where webhooks may go, how they are signed and sent, and when they are sent again."""

import ipaddress
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler

import pytest
import trustme
from httpx2 import create_ssl_context
from standardwebhooks import Webhook

from api.routes.delivery import rules_of
from benchmarks.harness.checkout import ROOT
from replaceme_core.errors import AddressRefused, HostUnknown, InvalidInput
from replaceme_core.settings import Settings
from replaceme_core.webhooks import (
    HOUR,
    PAUSES,
    Outcome,
    Resolve,
    Sender,
    TargetRules,
    addresses_of,
    is_allowed,
    new_secret,
    parse_target,
    pause_after,
    signed_headers,
)
from tests.fixtures.webhooks.receiver import Answer, Receiver, receiver

STRICT = TargetRules()
HTTP = TargetRules(allow_http=True)

PRIVATE_V4 = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.0.1"),
    *("168.63.129.16", "169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255"),
    *("192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "192.168.255.255", "198.18.0.1"),
    *("198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
)
PRIVATE_V6 = (
    *("::", "::1", "::2", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:1.1.1.1", "::ffff:0:127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b::1.1.1.1", "64:ff9b:1::a00:1", "100::1", "2001::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::"),
    *("2002:a00:1::1", "2620:4f:8000::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd12:3456::1", "fe80::1"),
    *("fe80::5efe:7f00:1", "fec0::1", "ff02::1", "ff0e::1", "4000::1"),
)
PUBLIC = ("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255")
PUBLIC += ("172.15.255.255", "172.32.0.0", "192.0.1.1", "192.167.255.255", "223.255.255.255", "2606:4700::1111")
PUBLIC += ("2001:4860:4860::8888", "2a00:1450::1", "2003::1")


@pytest.mark.parametrize("text", [*PRIVATE_V4, *PRIVATE_V6])
def test_an_address_that_is_not_public_is_refused(text: str) -> None:
    assert not is_allowed(ipaddress.ip_address(text))
    host = f"[{text}]" if ":" in text else text
    with pytest.raises(AddressRefused):
        parse_target(f"https://{host}/", STRICT)
    with pytest.raises(AddressRefused):
        resolved_to("hooks.example.com", text)


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_allowed(text: str) -> None:
    assert is_allowed(ipaddress.ip_address(text))
    host = f"[{text}]" if ":" in text else text
    assert parse_target(f"https://{host}:8443/x", STRICT).host == text


SPELLINGS_OF_LOOPBACK = (
    *("2130706433", "017700000001", "0x7f000001", "0x7F000001", "127.1", "127.0.1", "0177.0.0.1", "0x7f.0.0.1"),
    *("0x7f.0x0.0x0.0x1", "127.0.0.01", "127.0.0.0x1", "127.0.0.1.", "0177.1", "00000177.0.0.1", "1", "0", "0x", "09"),
    *("127.0.0.1.1", "256.256.256.256", "999999999999", "3232235777", "127.0.0.1..", ".127.0.0.1"),
    *("１２７.０.０.１", "①②⑦.0.0.1", "127。0。0。1", "127%2e0%2e0%2e1", "%31%32%37.0.0.1", "127.0.0.1%00.example.com"),
)
OTHER_HOSTS = (
    *("[::1%25lo]", "[::1%lo]", "[fe80::1%25eth0]", "[::1", "::1", "[]", "[127.0.0.1]", "[v1.x]", "[::ffff:0x7f.1]"),
    *("", ".", "..", "a..b", "-a.example", "a-.example", "a b.example", "a\tb.example", "a\\b.example", "a'b", 'a"b'),
    *("exa{mple.com", "example.com|x", "exämple.com", "example。com", "localhost%2f.example.com", "a" * 64 + ".com"),
    "a." * 127 + "com",
)


@pytest.mark.parametrize("host", [*SPELLINGS_OF_LOOPBACK, *OTHER_HOSTS])
def test_a_host_in_another_spelling_is_refused(host: str) -> None:
    for scheme in ("https", "http"):
        with pytest.raises(InvalidInput):
            parse_target(f"{scheme}://{host}/", HTTP)


@pytest.mark.parametrize(
    "url",
    [
        *("http://hooks.example.com/", "HTTP://hooks.example.com/", "ftp://hooks.example.com/", "file:///etc/passwd"),
        *("gopher://127.0.0.1:6379/_x", "unix:///run/docker.sock", "javascript:alert(1)", "//hooks.example.com/", ""),
        *("https:hooks.example.com", "https:///hooks.example.com", "https:\\\\hooks.example.com", "hooks.example.com"),
        *("https://user@hooks.example.com/", "https://user:pass@hooks.example.com/", "https://@hooks.example.com/"),
        *("https://1.1.1.1@127.0.0.1/", "https://1.1.1.1:443@127.0.0.1/", "https://127.0.0.1#@1.1.1.1/"),
        *("https://127.0.0.1\\@1.1.1.1/", "https://1.1.1.1 @127.0.0.1/", "https://1.1.1.1#.example.com/"),
        *("https://hooks.example.com/#", "https://hooks.example.com/#x", "https://hooks.example.com:/"),
        *("https://hooks.example.com:0/", "https://hooks.example.com:65536/", "https://hooks.example.com:80:443/"),
        *("https://hooks.example.com:x/", "https://hooks.example.com:-1/", "https://hooks.example.com:４43/"),
        *("https://hooks.example.com/\r\nX: y", "https://hooks.example.com/a b", "https://hooks.example.com/\x00"),
        *(" https://hooks.example.com/", "https://hooks.example.com/ ", "https://hooks.example.com/é"),
        "\thttps://a.b/",
        "https://hooks.example.com/" + "a" * 2000,
    ],
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_target(url, STRICT)
    assert caught.value.field == "url"
    assert caught.value.value is None, "a URL may hold a password"
    assert "pass" not in str(caught.value).replace("password", "")


def test_what_is_sent_is_what_was_read() -> None:
    target = parse_target("https://Hooks.Example.COM.:8443/a%2Fb/../c?d=e%20f&g", STRICT)
    assert (target.host, target.port, target.path) == ("hooks.example.com", 8443, "/a%2Fb/../c?d=e%20f&g")
    assert target.authority == "hooks.example.com:8443"
    assert parse_target("https://a.example?x", STRICT).path == "/?x"
    assert parse_target("https://[2606:4700::1111]", STRICT).authority == "[2606:4700::1111]"
    assert parse_target("http://a.example:80/", HTTP).authority == "a.example"
    assert parse_target("http://a.example:443/", HTTP).authority == "a.example:443"


def resolved_to(host: str, *addresses: str, rules: TargetRules = STRICT) -> list[str]:
    def resolve(name: str, port: int) -> Sequence[str]:
        assert (name, port) == (host, 443)
        return addresses

    return addresses_of(parse_target(f"https://{host}/", rules), rules, seconds=5, resolve=resolve)


def test_one_address_that_is_not_public_is_enough() -> None:
    assert resolved_to("a.example", "1.1.1.1", "2606:4700::1") == ["1.1.1.1", "2606:4700::1"]
    for bad in ("10.0.0.1", "::1", "fe80::1%eth0", "2606:4700::1%eth0", "nonsense"):
        for addresses in (("1.1.1.1", bad), (bad, "1.1.1.1")):
            with pytest.raises(AddressRefused):
                resolved_to("a.example", *addresses)


def test_a_name_without_addresses_and_a_resolver_that_hangs() -> None:
    with pytest.raises(HostUnknown):
        resolved_to("a.example")
    release = threading.Event()

    def hang(_: str, __: int) -> Sequence[str]:
        release.wait(30)
        return ["1.1.1.1"]

    try:
        with pytest.raises(HostUnknown):
            addresses_of(parse_target("https://a.example/", STRICT), STRICT, seconds=0.05, resolve=hang)
    finally:
        release.set()


def test_the_operator_may_allow_networks() -> None:
    rules = TargetRules(networks=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")))
    assert parse_target("https://10.1.2.3/", rules).host == "10.1.2.3"
    assert parse_target("https://[fd00::1]/", rules).host == "fd00::1"
    assert resolved_to("a.example", "10.1.2.3", "1.1.1.1", rules=rules)
    for text in ("10.2.0.1", "127.0.0.1", "::ffff:10.1.2.3", "64:ff9b::a01:203"):
        assert not is_allowed(ipaddress.ip_address(text), networks=rules.networks)
        with pytest.raises(AddressRefused):
            resolved_to("a.example", text, rules=rules)


@pytest.mark.parametrize("url", ["http://hooks.example.com/", "https://127.0.0.1/", "https://localhost/"])
def test_a_refusal_names_both_settings_for_a_receiver_on_the_same_machine(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        addresses_of(parse_target(url, STRICT), STRICT, seconds=10)
    named = dict(re.findall(r"REPLACEME_(\w+)=(\S+)", str(caught.value)))
    assert named.keys() == {"WEBHOOK_ALLOW_HTTP", "WEBHOOK_NETWORKS"}
    rules = rules_of(Settings.model_validate({name.lower(): value for name, value in named.items()}))
    assert addresses_of(parse_target("http://localhost:9000/replaceme", rules), rules, seconds=10)
    page = (ROOT / "docs" / "how-to" / "receive-webhooks.md").read_text("utf-8")
    assert all(f"REPLACEME_{name}={value}" in page for name, value in named.items())


def test_the_official_verifier_accepts_what_is_signed() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith("whsec_") and len(secret) == 50 for secret in secrets)
    body, (old, new, *_) = '{"type":"job.succeeded","n":1.5}', secrets
    for at in (datetime.now(tz=UTC), datetime.now(tz=UTC).astimezone(tz=None)):
        headers = signed_headers(message_id="evt_x-1", body=body, secrets=(old, new), at=at)
        for secret in (old, new):
            assert Webhook(secret).verify(body, headers) == json.loads(body)


def test_the_pauses_grow_and_take_three_days_together() -> None:
    assert list(PAUSES) == sorted(PAUSES)
    assert 71 * HOUR < sum(PAUSES) < 73 * HOUR
    for tries, pause in enumerate(PAUSES, 1):
        found = pause_after(tries, retry_after=0.0)
        assert found is not None
        assert pause <= found <= 1.1 * pause, "a receiver may not ask for less"
    assert pause_after(len(PAUSES) + 1) is None
    assert pause_after(1, retry_after=3600.0) == 3600.0
    assert pause_after(1, retry_after=1e9) == 24 * HOUR, "it may ask for more, but at most for a day"


@pytest.fixture
def there() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


HERE = TargetRules(allow_http=True, networks=(ipaddress.ip_network("127.0.0.0/8"),))
BODY = '{"n":1}'
USUAL_AUTHORITIES = create_ssl_context()


def send(
    url: str,
    *,
    rules: TargetRules = HERE,
    resolve: Resolve = lambda host, port: ["127.0.0.1"],
    ssl_context: ssl.SSLContext = USUAL_AUTHORITIES,
    seconds: float = 2.0,
    body: str = BODY,
) -> Outcome:
    sender = Sender(rules=rules, seconds=seconds, resolve=resolve, ssl_context=ssl_context)
    return sender.send(url, body=body, headers={"webhook-id": "evt_x-1"})


def test_it_is_sent_as_a_post_with_the_name_as_host(there: Receiver) -> None:
    outcome = send(f"http://hooks.example.com:{there.port}/a?b=c")
    (request,) = there.received
    assert outcome.is_delivered
    assert (outcome.status, outcome.error) == (204, None)
    assert (request.path, request.body) == ("/a?b=c", BODY.encode())
    assert request.headers["host"] == f"hooks.example.com:{there.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "evt_x-1"


def test_a_name_that_changes_its_address_gains_nothing() -> None:
    """The checked address is the one connected to: a second look-up would find another one, and there is none."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    def rebind(_: str, __: int) -> Sequence[str]:
        return answers.pop(0)

    with receiver() as there:
        assert send(f"http://hooks.example.com:{there.port}/", resolve=rebind).is_delivered
    assert answers == [["127.0.0.2"]], "the name was looked up once"
    only = TargetRules(allow_http=True, networks=(ipaddress.ip_network("127.0.0.1/32"),))
    with receiver() as there:
        outcome = send(f"http://hooks.example.com:{there.port}/", rules=only, resolve=lambda *_: ["127.0.0.2"])
        assert outcome.error == "address_refused"
        assert there.received == []


def test_nothing_goes_to_this_machine_by_default(there: Receiver) -> None:
    strict = TargetRules(allow_http=True)
    for host in ("127.0.0.1", "localhost", "hooks.example.com", "[::ffff:127.0.0.1]"):
        outcome = send(f"http://{host}:{there.port}/", rules=strict)
        assert outcome.error == "address_refused"
    assert send(f"http://2130706433:{there.port}/", rules=strict).error == "url_refused"
    assert send(f"http://127.0.0.1:{there.port}/", rules=TargetRules()).error == "url_refused"
    assert there.received == []


def contexts_for(name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server with a certificate for `name`, and of a client that trusts its authority."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(name).configure_cert(server)
    authority.configure_trust(client)
    return server, client


def test_the_certificate_and_the_name_in_tls_are_those_of_the_host() -> None:
    server, client = contexts_for("hooks.example.com")
    with receiver(tls=server) as there:
        assert send(f"https://hooks.example.com:{there.port}/", ssl_context=client).is_delivered
        assert there.server_names == ["hooks.example.com"]
        assert there.received[0].headers["host"] == f"hooks.example.com:{there.port}"
        for url in (f"https://other.example.com:{there.port}/", f"https://127.0.0.1:{there.port}/"):
            assert send(url, ssl_context=client).error == "tls_failed"
        assert send(f"https://hooks.example.com:{there.port}/").error == "tls_failed", "not a trusted authority"
        assert len(there.received) == 1


@pytest.mark.parametrize(
    ("status", "headers", "error", "retry_after"),
    [
        (301, {"location": "/elsewhere"}, "redirect", None),
        (308, {"location": "/elsewhere"}, "redirect", None),
        (500, {}, "status", None),
        (410, {}, "status", None),
        (429, {"Retry-After": "120"}, "status", 120.0),
        (503, {"Retry-After": "soon"}, "status", None),
    ],
)
def test_another_status_is_a_failure(
    status: int, headers: dict[str, str], error: str, retry_after: float | None, there: Receiver
) -> None:
    there.status, there.headers = status, headers
    outcome = send(there.url)
    assert len(there.received) == 1
    assert (outcome.status, outcome.error, outcome.retry_after) == (status, error, retry_after)
    assert outcome.is_gone is (status == 410)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as proxy, receiver() as there:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert send(there.url).is_delivered
        assert proxy.received == []


def test_the_next_address_is_tried_if_one_does_not_accept(there: Receiver) -> None:
    url = f"http://hooks.example.com:{there.port}/"
    assert send(url, resolve=lambda *_: ["127.0.0.9", "127.0.0.1"]).is_delivered
    assert send(url, resolve=lambda *_: ["127.0.0.9"]).error == "not_connected"


def repeating(first: bytes, again: bytes, pause: float) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first)
        while True:
            handler.wfile.write(again)
            time.sleep(pause)

    return answer


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (repeating(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0.02), "timeout"),
        (repeating(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.01), "timeout"),
        (repeating(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 65536, 0), "connection_lost"),
        (lambda handler: handler.connection.shutdown(socket.SHUT_RDWR), "connection_lost"),
    ],
    ids=["headers one at a time", "endless early hints", "a huge header", "nothing"],
)
def test_a_receiver_that_misbehaves_is_left_in_time(answer: Answer, error: str, there: Receiver) -> None:
    there.answer = answer
    assert send(there.url, seconds=0.3).error == error


@pytest.mark.parametrize("body", [BODY, "x" * 20_000_000])
def test_a_receiver_that_neither_reads_nor_answers_is_left_in_time(body: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        outcome = send(f"http://127.0.0.1:{silent.getsockname()[1]}/", body=body, seconds=0.3)
    assert outcome.error == "timeout"


def test_an_endless_body_is_not_read_to_its_end(there: Receiver) -> None:
    there.answer = repeating(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536, 0)
    assert send(there.url).is_delivered, "the status is known, and the rest is not wanted"
