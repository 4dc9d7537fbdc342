"""The test bed itself: two tenants with the same addresses, each with servers of its own, and no way between them."""

import pytest
from doubles.private_networks import INTERNET, SERVER, bed, datagram, greeting, postgres_tenant, redis, sandbox

pytestmark = [pytest.mark.system, pytest.mark.needs_root]


def test_two_tenants_with_the_same_addresses() -> None:
    with bed(nodes=2, postgres=True) as made:
        for tenant in ("acme", "umbra"):
            for place, proxy in enumerate(made.proxies[tenant]):
                assert proxy.run(lambda: redis("GET", "tenant")) == tenant
                assert proxy.run(postgres_tenant) == tenant
                assert proxy.run(greeting) == (tenant, f"10.0.0.{11 + place}")
                assert proxy.run(lambda: datagram(b"x")).split()[0] == tenant.encode()
                assert proxy.run(lambda: greeting(INTERNET))[0] == f"{tenant}-internet"
        for node in made.nodes:
            with pytest.raises(OSError, match=r"nreachable|timed out"):
                node.run(lambda: greeting(SERVER, timeout_s=0.2))
            node.ip("route", "add", f"{INTERNET}/32", "via", "198.18.0.1")
            assert node.run(lambda: greeting(INTERNET)) == ("underlay-internet", node.address)
        function = sandbox()
        with pytest.raises(OSError, match="nreachable"):
            function.run(lambda: greeting(SERVER))
        function.close()
