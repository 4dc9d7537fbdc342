"""What a private network may be: what is read stays the same when it is read again, what is refused names its field."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.catalog.errors import Refused
from orchestrator.vpcs import MAX_CIDRS, MAX_RULES, read_address, read_cidrs, read_rules, rule_of, write_rule
from workers.networks import RESERVED, Rule

NETWORKS = st.builds(
    lambda bits, prefix: ipaddress.IPv4Network((bits & (0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF, prefix)),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)


@pytest.mark.parametrize(
    ("cidrs", "why"),
    [
        ([], "at least one CIDR"),
        (["0.0.0.0/0"], "egress = internet"),
        (["10.0.0.1/16"], "the network is 10.0.0.0/16"),
        (["100.64.0.0/16"], "the sandboxes' own"),
        (["100.0.0.0/8"], "the sandboxes' own"),
        (["127.0.0.0/24"], "loopback"),
        (["169.254.169.254/32"], "metadata"),
        (["224.0.0.0/24"], "multicast"),
        (["0.1.0.0/16"], "this host"),
        (["fd00::/64"], "not a CIDR of IPv4"),
        (["10.0.0.0/33"], "not a CIDR of IPv4"),
        (["nonsense"], "not a CIDR of IPv4"),
        (["10.0.0.0/255.0.255.0"], "not a CIDR of IPv4"),
        (["10.0.0.0/8", "10.1.0.0/16"], "10.1.0.0/16 lies within 10.0.0.0/8"),
        ([f"10.{number}.0.0/24" for number in range(MAX_CIDRS + 1)], f"at most {MAX_CIDRS}"),
    ],
)
def test_a_cidr_that_cannot_be_is_refused_with_why(cidrs: list[str], why: str) -> None:
    with pytest.raises(Refused) as refused:
        read_cidrs(cidrs)
    assert refused.value.field == "cidrs"
    assert why in str(refused.value)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("10.0.1.0/24:5432", "PROTOCOL:CIDR:PORTS"),
        ("tcp:10.0.1.0/24", "PROTOCOL:CIDR:PORTS"),
        ("icmp:10.0.1.0/24:1", "tcp or udp"),
        ("tcp:10.0.1.0/24:0", "not a port"),
        ("tcp:10.0.1.0/24:65536", "not a port"),
        ("tcp:10.0.1.0/24:١", "not a port"),
        ("tcp:10.0.1.0/24:" + "9" * 5000, "not a port"),
        ("tcp:10.0.1.0/24:90-80", "behind the last"),
        ("tcp:10.0.1.0/24:80-", "not a port"),
        ("tcp:10.0.1.1/24:80", "the network is 10.0.1.0/24"),
        ("tcp:192.168.0.0/24:80", "not within 10.0.0.0/16"),
        ("tcp:10.0.0.0/8:80", "not within 10.0.0.0/16"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_why(rule: str, why: str) -> None:
    with pytest.raises(Refused) as refused:
        read_rules([rule], ["10.0.0.0/16"])
    assert refused.value.field == "rules"
    assert why in str(refused.value)
    assert len(str(refused.value)) < 300


def test_too_many_rules_are_refused() -> None:
    with pytest.raises(Refused, match=f"at most {MAX_RULES}"):
        read_rules([f"tcp:10.0.0.0/16:{port}" for port in range(1, MAX_RULES + 2)], ["10.0.0.0/16"])


@given(st.lists(NETWORKS, min_size=1, max_size=6))
def test_what_is_read_is_canonical_and_apart_from_what_is_forbidden(networks: list[ipaddress.IPv4Network]) -> None:
    try:
        read = read_cidrs([str(one) for one in networks])
    except Refused:
        return
    assert read_cidrs(read) == read
    assert {ipaddress.IPv4Network(one) for one in read} == set(networks)
    for one in read:
        assert not any(ipaddress.IPv4Network(one).overlaps(other) for other in RESERVED)


@given(NETWORKS, st.sampled_from(["tcp", "udp"]), st.integers(1, 65535), st.integers(1, 65535))
def test_a_rule_is_written_as_it_is_read(network: ipaddress.IPv4Network, protocol: str, one: int, other: int) -> None:
    rule = Rule(str(network), protocol, min(one, other), max(one, other))
    assert rule_of(write_rule(rule)) == rule
    assert read_rules([write_rule(rule), write_rule(rule)], [str(network)]) == (write_rule(rule),)


@given(st.text(max_size=40))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    for read in (lambda: read_cidrs([text]), lambda: read_rules([text], ["10.0.0.0/8"]), lambda: read_address(text, "address")):
        try:
            read()
        except Refused as refused:
            assert refused.field in ("cidrs", "rules", "address")


def test_addresses_are_those_a_host_may_have() -> None:
    assert read_address("", "address") == ""
    assert read_address("10.0.0.2", "resolver", ["10.0.0.0/16"]) == "10.0.0.2"
    for wrong in ("127.0.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "10.0.0", "::1", "10.1.0.1"):
        with pytest.raises(Refused):
            read_address(wrong, "resolver", ["10.0.0.0/16"])
