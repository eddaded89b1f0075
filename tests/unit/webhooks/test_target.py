"""The tricks with which a URL may lead somewhere else than it seems."""

import ipaddress
import re
import threading
from collections.abc import Sequence

import pytest

from api.jobs.webhooks import rules_of
from benchmarks.harness.checkout import ROOT
from replaceme_core.errors import AddressRefused, HostUnknown, InvalidInput
from replaceme_core.settings import Settings
from replaceme_core.webhooks import TargetRules, addresses_of, is_allowed, is_public, parse_target

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
    assert not is_public(ipaddress.ip_address(text))
    host = f"[{text}]" if ":" in text else text
    with pytest.raises(AddressRefused):
        parse_target(f"https://{host}/", STRICT)
    with pytest.raises(AddressRefused):
        resolved_to("hooks.example.com", text)


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_allowed(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))
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
        *(
            " https://hooks.example.com/",
            "https://hooks.example.com/ ",
            "https://hooks.example.com/é",
            "\thttps://a.b/",
        ),
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


def test_names_of_this_machine_are_refused_by_their_addresses() -> None:
    with pytest.raises(AddressRefused):
        addresses_of(parse_target("https://localhost/", STRICT), STRICT, seconds=5)


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
