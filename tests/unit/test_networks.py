"""What a Vpc lets functions reach."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from workers.drivers.process import isolation
from workers.networks import RESOLVER, Rule, VpcSpec

addresses = st.integers(0, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number)))
inside = st.integers(0, 2**16 - 1).map(lambda number: str(ipaddress.IPv4Address((10 << 24) + number)))


def vpc(*rules: Rule) -> VpcSpec:
    return VpcSpec("acme/main", "acme", 7, 1, ("10.0.0.0/16",), rules)


@given(addresses, st.sampled_from(["tcp", "udp"]), st.integers(0, 65535))
def test_nothing_outside_its_cidrs(address: str, protocol: str, port: int) -> None:
    held = ipaddress.ip_address(address) in ipaddress.ip_network("10.0.0.0/16")
    assert vpc().allows(address, protocol, port) == held
    assert held or not vpc(Rule("0.0.0.0/0", protocol, 0, 65535)).allows(address, protocol, port)


@given(inside, st.integers(0, 65535))
def test_rules_name_what_is_left(address: str, port: int) -> None:
    allowed = vpc(Rule("10.0.1.0/24", "tcp", 5432, 5433)).allows(address, "tcp", port)
    assert allowed == (address.startswith("10.0.1.") and port in (5432, 5433))
    assert not vpc(Rule("10.0.1.0/24", "tcp", 0, 65535)).allows(address, "udp", port)


def test_sandboxes_ask_the_resolver_that_both_backends_answer_for() -> None:
    """The template that writes their resolv.conf cannot import workers.networks."""
    assert isolation.RESOLVER == RESOLVER
