"""Private networks in the store, on both databases: numbers, generations, who uses one, what its proxies are."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from graph.ids import FunctionId
from orchestrator.catalog.errors import Conflict, NotFound, OverQuota, Refused
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.model import ConditionName, ConditionStatus, EventKind, Module
from orchestrator.catalog.store import Store
from orchestrator.catalog.vpcs import VpcSettings, VpcUser
from orchestrator.quotas import OwnQuotas, Quotas
from orchestrator.splitting import Pointer
from workers.networks import Rule, VpcSpec

DIGEST = "sha256:" + "a" * 64
F = FunctionId("acme/f")
TEN = VpcSettings(["10.0.0.0/16"], ["tcp:10.0.1.0/24:5432"], "", "10.0.0.2")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    made = Store(database_url, Quotas(vpcs=3))
    made.migrate()
    for tenant in ("acme", "rival"):
        made.keys.create_tenant(tenant, 1)
        made.packages.register(tenant, DIGEST, 1, 10, (), "", 1)
    yield made
    made.close()


def deploy(store: Store, vpc: str = "db", tenant: str = "acme", instances: int = 0) -> int:
    settings = VersionSettings(DIGEST, "h:f", "event", "python3.11", 128, 30.0, 1, vpc=vpc, initial_instances=instances)
    return store.functions.put(tenant, "f", settings, 2).versions[0].number


def join(store: Store, name: str, vpc: str, fingerprint: str = "f1") -> None:
    token = store.nodes.make_token("vpc-proxy", 60, 3, vpc)
    joined = store.nodes.join(token, "vpc-proxy", name, f"{name}:8706", "", lambda: ("pem", fingerprint), 4)
    assert joined.vpc == vpc


def spec(store: Store, vpc: str = "acme/db") -> VpcSpec | None:
    found = store.vpcs.published_one(vpc)
    assert found is not None
    return found.spec


def status(store: Store, number: int, name: ConditionName = ConditionName.NETWORK) -> tuple[str, str]:
    found = {one.name: one for one in store.functions.describe_version("acme", "f", number).conditions}[name]
    return found.status, found.reason


def close_all(store: Store) -> list[tuple[EventKind, str, Module]]:
    """What is due, now done."""
    done = []
    for event, module in store.outbox.due(1e12):
        loaded = store.outbox.load(event, module)
        assert loaded is not None
        done.append((loaded.kind, loaded.subject, module))
        store.outbox.close(event, module, 5)
    return done


def test_two_tenants_have_the_same_network_under_two_numbers(store: Store) -> None:
    made = [store.vpcs.create(tenant, "db", TEN, 2).spec for tenant in ("acme", "rival")]
    assert made[0].number != made[1].number
    assert made[0] == VpcSpec(
        "acme/db", "acme", made[0].number, 1, ("10.0.0.0/16",), (Rule("10.0.1.0/24", "tcp", 5432, 5432),), "", "10.0.0.2"
    )
    assert (EventKind.VPC, "acme/db", Module.METADATA_SYNC) in close_all(store)
    with pytest.raises(NotFound):
        store.vpcs.describe("rival", "other")


def test_a_number_and_a_generation_never_come_again(store: Store) -> None:
    first = store.vpcs.create("acme", "db", TEN, 2).spec
    store.vpcs.remove("acme", "db", 3)
    gone = store.vpcs.published_one("acme/db")
    assert gone is not None
    assert (gone.spec, gone.generation) == (None, 2)
    again = store.vpcs.create("acme", "db", TEN, 4).spec
    assert again.number > first.number
    assert again.generation == 3
    with pytest.raises(Conflict):
        store.vpcs.create("acme", "db", TEN, 5)
    assert [one.generation for one in store.vpcs.published()] == [3]


def test_numbers_are_unique_however_many_are_made_at_once(store: Store) -> None:
    def make(number: int) -> int:
        return store.vpcs.create(("acme", "rival")[number % 2], f"n{number}", TEN, 2).spec.number

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(make, range(6)))
    assert len(set(numbers)) == 6


def test_the_quota_counts_those_that_are_there(store: Store) -> None:
    for number in range(3):
        store.vpcs.create("acme", f"n{number}", TEN, 2)
    with pytest.raises(OverQuota, match="quota vpcs of tenant acme is 3"):
        store.vpcs.create("acme", "n3", TEN, 2)
    store.vpcs.remove("acme", "n0", 3)
    store.vpcs.create("acme", "n3", TEN, 4)
    store.tenants.set_quotas("acme", OwnQuotas(vpcs=4), 5)
    assert store.tenants.describe("acme").use.vpcs == 3
    store.vpcs.create("acme", "n4", TEN, 6)


def test_a_bad_setting_changes_nothing(store: Store) -> None:
    store.vpcs.create("acme", "db", TEN, 2)
    for wrong in (VpcSettings(["10.0.0.1/16"]), VpcSettings(["10.0.0.0/16"], ["tcp:10.1.0.0/24:1"]), VpcSettings([])):
        with pytest.raises(Refused):
            store.vpcs.change("acme", "db", wrong, 3)
    assert store.vpcs.describe("acme", "db").spec.generation == 1
    changed = store.vpcs.change("acme", "db", VpcSettings(["10.1.0.0/16"]), 4)
    assert (changed.spec.cidrs, changed.spec.rules, changed.spec.generation) == (("10.1.0.0/16",), (), 2)


def test_a_function_names_a_network_of_its_own_tenant_that_is_there(store: Store) -> None:
    store.vpcs.create("rival", "db", TEN, 2)
    with pytest.raises(Refused) as refused:
        deploy(store)
    assert refused.value.field == "vpc"
    assert "foreglow vpc create" in str(refused.value)
    store.vpcs.create("acme", "db", TEN, 2)
    number = deploy(store)
    pending = store.functions.pending(F, number)
    assert pending is not None
    assert pending.spec.vpc == "acme/db"
    assert store.functions.describe("acme", "f").versions[0].vpc == "db"


def test_one_that_is_used_stays_and_says_by_whom(store: Store) -> None:
    store.vpcs.create("acme", "db", TEN, 2)
    deploy(store)
    assert store.vpcs.users("acme/db") == [VpcUser(F, 1)]
    assert store.vpcs.describe("acme", "db").functions == ["f"]
    with pytest.raises(Conflict, match=r"used by 1 functions \(f\)"):
        store.vpcs.remove("acme", "db", 3)
    deploy(store, vpc="")
    assert store.vpcs.users("acme/db") == []
    store.vpcs.remove("acme", "db", 3)
    with pytest.raises(NotFound):
        store.vpcs.remove("acme", "db", 4)


def test_a_version_that_an_alias_means_or_that_was_published_uses_it_too(store: Store) -> None:
    store.vpcs.create("acme", "db", TEN, 2)
    for vpc in ("db", "db", ""):
        number = deploy(store, vpc)
        for name in (ConditionName.CODE, ConditionName.NETWORK, ConditionName.CAPACITY):
            store.functions.set_condition(F, number, name, ConditionStatus.TRUE, "", 3)
        route = store.functions.mark_serving(F, number, None, 4)
        assert route is not None
        store.functions.mark_published(route, 5)
    assert store.vpcs.users("acme/db") == []
    store.aliases.set("acme", "f", "live", Pointer(3, 1, 0.1), None, None, 6)
    store.aliases.publish("acme", "f", 2, "", 7)
    assert store.vpcs.users("acme/db") == [VpcUser(F, 1), VpcUser(F, 2)]
    with pytest.raises(Conflict, match="aliases and published versions"):
        store.vpcs.remove("acme", "db", 8)
    store.aliases.set("acme", "f", "live", Pointer(3), None, None, 9)
    assert store.vpcs.describe("acme", "db").functions == ["f"]
    store.aliases.unpublish("acme", "f", 2, 10)
    store.vpcs.remove("acme", "db", 11)


def test_proxies_are_those_that_joined_for_it_and_every_change_of_one_is_a_change_of_it(store: Store) -> None:
    for tenant in ("acme", "rival"):
        store.vpcs.create(tenant, "db", TEN, 2)
    join(store, "p2", "acme/db")
    join(store, "p1", "acme/db", "f2")
    join(store, "theirs", "rival/db")
    found = spec(store)
    assert found is not None
    assert [(one.name, one.address, one.fingerprint) for one in found.proxies] == [
        ("p1", "p1:8706", "f2"),
        ("p2", "p2:8706", "f1"),
    ]
    before = found.generation
    store.nodes.rejoin("vpc-proxy", "p1", "f2", 5)
    store.nodes.renew("vpc-proxy", "p1", "f2", lambda: ("pem", "f3"), 6)
    renewed = spec(store)
    assert renewed is not None
    assert renewed.generation == before + 2
    assert (renewed.proxies[0].fingerprint, renewed.proxies[0].fingerprint_before) == ("f3", "f2")
    store.nodes.remove("p1", 7)
    left = spec(store)
    assert left is not None
    assert ([one.name for one in left.proxies], left.generation) == (["p2"], before + 3)
    assert [one.vpc for one in store.nodes.list()] == ["acme/db", "acme/db", "rival/db"]


def test_one_beside_control_needs_no_token(store: Store) -> None:
    store.vpcs.create("acme", "db", TEN, 2)
    store.nodes.beside("vpc-proxy@here", "127.0.0.1:8706", "acme/db", 3)
    store.nodes.beside("vpc-proxy@here", "127.0.0.1:8707", "acme/db", 4)
    found = spec(store)
    assert found is not None
    assert [(one.name, one.address, one.fingerprint) for one in found.proxies] == [("vpc-proxy@here", "127.0.0.1:8707", "")]
    with pytest.raises(Refused):
        store.nodes.beside("vpc-proxy@here", "127.0.0.1:8706", "acme/other", 3)


def test_a_token_says_for_which_network_and_only_for_proxies(store: Store) -> None:
    store.vpcs.create("acme", "db", TEN, 2)
    for role, vpc in (("vpc-proxy", ""), ("node", "acme/db"), ("vpc-proxy", "acme/none"), ("vpc-proxy", "db")):
        with pytest.raises(Refused) as refused:
            store.nodes.make_token(role, 60, 3, vpc)
        assert refused.value.field == "vpc"


def test_nodes_have_numbers_of_their_own_as_long_as_they_are_there(store: Store) -> None:
    def node(name: str) -> int:
        token = store.nodes.make_token("node", 60, 3)
        return store.nodes.join(token, "node", name, f"{name}:1", "", lambda: ("pem", name), 4).number

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(node, ("n1", "n2", "n3", "n4"))) == [2, 3, 4, 5]
    store.nodes.remove("n2", 5)
    assert len({node("n5"), node("n6"), 2, 3, 4, 5}) == 5


def test_a_network_that_comes_late_brings_the_version_that_failed_for_it(store: Store) -> None:
    store.vpcs.create("acme", "db", TEN, 2)
    number = deploy(store, instances=2)
    store.functions.set_condition(F, number, ConditionName.CODE, ConditionStatus.TRUE, "", 3)
    store.functions.set_condition(F, number, ConditionName.NETWORK, ConditionStatus.FALSE, "no proxy", 3)
    store.functions.set_condition(F, number, ConditionName.CAPACITY, ConditionStatus.NOT_NEEDED, "", 3)
    close_all(store)
    assert store.functions.describe_version("acme", "f", number).state == "failed"
    assert store.functions.retry_network(F, number, 6)
    assert store.functions.describe_version("acme", "f", number).state == "pending"
    assert status(store, number) == ("unknown", "is tried again")
    assert status(store, number, ConditionName.CODE)[0] == "true"
    assert not store.functions.retry_network(F, number, 7), "it is under way"
    due = close_all(store)
    assert (EventKind.DEPLOYED, F, Module.NETWORK_DEPLOYMENT) in due
    assert (EventKind.DEPLOYED, F, Module.METADATA_SYNC) not in due
    store.functions.set_condition(F, number, ConditionName.NETWORK, ConditionStatus.TRUE, "", 8)
    assert (EventKind.DEPLOYED, F, Module.METADATA_SYNC) in close_all(store)
    assert store.functions.mark_serving(F, number) is not None


@pytest.mark.parametrize("reason", ["the code fails too", "a newer one is there"])
def test_a_version_that_failed_for_more_stays_failed(store: Store, reason: str) -> None:
    store.vpcs.create("acme", "db", TEN, 2)
    number = deploy(store)
    store.functions.set_condition(F, number, ConditionName.NETWORK, ConditionStatus.FALSE, "no proxy", 3)
    if reason == "the code fails too":
        store.functions.set_condition(F, number, ConditionName.CODE, ConditionStatus.FALSE, "no such module", 3)
    else:
        deploy(store)
    assert not store.functions.retry_network(F, number, 6)


def test_one_that_serves_says_how_its_network_stands_and_goes_on_serving(store: Store) -> None:
    store.vpcs.create("acme", "db", TEN, 2)
    number = deploy(store)
    store.functions.observe_network(F, number, ConditionStatus.FALSE, "too early", 3)
    assert status(store, number)[0] == "unknown"
    for name in (ConditionName.CODE, ConditionName.NETWORK, ConditionName.CAPACITY):
        store.functions.set_condition(F, number, name, ConditionStatus.TRUE, "", 3)
    route = store.functions.mark_serving(F, number)
    assert route is not None
    store.functions.mark_published(route, 4)
    store.functions.observe_network(F, number, ConditionStatus.FALSE, "the proxy is away", 5)
    assert status(store, number) == ("false", "the proxy is away")
    assert store.functions.describe_version("acme", "f", number).state == "ready"
    still = store.functions.route(F)
    assert still is not None
    assert still.latest == number


def test_a_removed_tenant_leaves_no_network(store: Store) -> None:
    store.vpcs.create("acme", "db", TEN, 2)
    deploy(store)
    store.tenants.remove("acme", True, 5)
    gone = store.vpcs.published_one("acme/db")
    assert gone is not None
    assert gone.spec is None
    assert (EventKind.VPC, "acme/db", Module.METADATA_SYNC) in close_all(store)


def test_who_moves_an_unknown_one_changes_nothing(store: Store) -> None:
    store.vpcs.moved("acme/none", 3)
    store.vpcs.create("acme", "db", TEN, 2)
    close_all(store)
    store.vpcs.moved("acme/db", 3)
    assert (EventKind.VPC, "acme/db", Module.NETWORK_DEPLOYMENT) in close_all(store)
