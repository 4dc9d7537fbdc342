"""Tenants, their keys and quotas, as control relies on them, on every database the store claims."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import create_engine, text

from orchestrator.catalog.errors import Conflict, NotFound, OverQuota, Refused
from orchestrator.catalog.functions import VersionSettings
from orchestrator.catalog.keys import LIVE_KEYS
from orchestrator.catalog.model import EventKind, KeyRole, LayerRole, Module
from orchestrator.catalog.packages import LayerView
from orchestrator.catalog.store import Store
from orchestrator.quotas import OwnQuotas, Quotas

DIGEST, OTHER_DIGEST = "sha256:" + "a" * 64, "sha256:" + "b" * 64
OTHER = os.environ.get("FOREGLOW_TEST_DATABASE_URL", "")
SETTINGS = VersionSettings(DIGEST, "h:f", "event", "python3.11", 128, 30.0, 1)


@pytest.fixture(params=["sqlite", *(["other"] if OTHER else [])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    if request.param == "other":
        url = OTHER
        with create_engine(url).begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    made = Store(url, Quotas(functions=3, package_bytes=100))
    made.migrate()
    for tenant in ("default", "acme", "rival"):
        made.tenants.create(tenant, OwnQuotas(), 1)
        made.packages.register(tenant, DIGEST, 1, 60, (), "", 1)
    yield made
    made.close()


def events(store: Store) -> list[tuple[EventKind, str, int]]:
    found = [store.outbox.load(event, Module.METADATA_SYNC) for event, _ in store.outbox.due(1e9)]
    return [(one.kind, one.subject, one.generation) for one in found if one is not None]


def test_a_tenant_is_made_once_and_its_name_must_be_one(store: Store) -> None:
    with pytest.raises(Conflict, match="exists already"):
        store.tenants.create("acme", OwnQuotas(), 2)
    for name in ("", "Acme", "a/b", "-a", "a" * 64):
        with pytest.raises(Refused) as refused:
            store.tenants.create(name, OwnQuotas(), 2)
        assert refused.value.field == "name"
    assert [view.name for view in store.tenants.list()] == ["acme", "default", "rival"]
    assert [view.name for view in store.tenants.list("acme", 1)] == ["default"]


def test_quotas_are_the_defaults_until_set_and_each_change_is_told_with_a_higher_generation(store: Store) -> None:
    assert store.tenants.describe("acme").quotas == Quotas(functions=3, package_bytes=100)
    assert events(store) == []
    view = store.tenants.set_quotas("acme", OwnQuotas(prewarm_idle_s_per_busy_s=0.25), 1.5)
    assert (view.own.prewarm_idle_s_per_busy_s, view.quotas.prewarm_idle_s_per_busy_s) == (0.25, 0.25)
    view = store.tenants.set_quotas("acme", OwnQuotas(concurrency=7, invocations_per_s=0.5), 2)
    assert (view.quotas.concurrency, view.quotas.invocations_per_s, view.quotas.functions) == (7, 0.5, 3)
    store.tenants.set_quotas("acme", OwnQuotas(functions=9), 3)
    assert [(kind, subject) for kind, subject, _ in events(store)] == [(EventKind.TENANT, "acme")] * 3
    told = store.tenants.published_one("acme")
    assert told is not None
    assert (told.generation, told.quotas, told.removed) == (3, OwnQuotas(functions=9), False)
    assert [one.tenant for one in store.tenants.published()] == ["acme"]
    with pytest.raises(NotFound):
        store.tenants.set_quotas("nobody", OwnQuotas(), 2)


def test_a_function_too_many_is_refused_with_the_numbers_and_who_can_help(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.functions.put("acme", name, SETTINGS, 2)
    store.functions.put("acme", "a", SETTINGS, 2)  # another version of one that is there
    with pytest.raises(OverQuota) as refused:
        store.functions.put("acme", "d", SETTINGS, 2)
    assert refused.value.quota == "functions"
    for word in ("functions", "acme", "is 3", "3 are in use", "operator", "foreglow tenants quotas acme --functions"):
        assert word in str(refused.value)
    store.functions.put("rival", "d", SETTINGS, 2)  # nobody else's business
    store.functions.remove("acme", "b", 3)
    store.functions.put("acme", "d", SETTINGS, 4)
    store.tenants.set_quotas("acme", OwnQuotas(functions=4), 5)
    store.functions.put("acme", "b", SETTINGS, 6)


def test_bytes_of_packages_are_counted_once_each(store: Store) -> None:
    with pytest.raises(OverQuota, match="package_bytes of tenant acme is 100: 60 are in use and 41 more"):
        store.packages.check_room("acme", OTHER_DIGEST, 41)
    with pytest.raises(OverQuota):
        store.packages.register("acme", OTHER_DIGEST, 1, 41, (), "", 2)
    store.packages.register("acme", OTHER_DIGEST, 1, 40, (), "", 2)
    store.packages.register("acme", DIGEST, 1, 60, (), "", 3)  # known: takes no more room
    store.packages.check_room("acme", DIGEST, 60)
    use = store.tenants.describe("acme").use
    assert (use.package_bytes, use.functions, use.keys) == (100, 0, 0)


def test_packages_that_no_version_uses_make_room_after_an_hour(store: Store) -> None:
    built, shared = "sha256:" + "c" * 64, "sha256:" + "d" * 64
    store.packages.register("acme", OTHER_DIGEST, 1, 40, (), "", 2)
    store.packages.add_layer("acme", LayerRole.CODE, DIGEST, "python3.11", LayerView(built, 1), 2)
    store.packages.add_layer("acme", LayerRole.CODE, OTHER_DIGEST, "python3.11", LayerView(shared, 1), 2)
    store.functions.put("acme", "f", SETTINGS, 2)
    assert store.packages.release("acme", 3000) == 0
    assert store.packages.release("acme", 4000) == 1
    assert store.packages.kept("acme") == {DIGEST, built}
    assert store.packages.find("acme", DIGEST) is not None
    assert store.tenants.describe("acme").use.package_bytes == 60
    store.functions.remove("acme", "f", 4000)
    assert store.packages.release("acme", 4000, unused_s=5000) == 0
    assert store.packages.release("acme", 4000) == 1
    assert store.packages.kept("acme") == set()
    assert store.packages.find("rival", DIGEST) is not None
    assert store.tenants.describe("acme").use.package_bytes == 0


def test_dependencies_stay_as_long_as_a_package_asks_for_them(store: Store) -> None:
    wanted, built = "e" * 64, "sha256:" + "c" * 64
    store.packages.register("acme", OTHER_DIGEST, 1, 40, ("six",), wanted, 2)
    for source in (wanted, f"otherwise:{wanted}", "f" * 64):
        store.packages.add_layer("acme", LayerRole.DEPENDENCIES, source, "python3.11", LayerView(built, 1), 2)
    store.functions.put("acme", "f", msgspec.structs.replace(SETTINGS, package=OTHER_DIGEST), 2)

    def known() -> list[bool]:
        sources = (wanted, f"otherwise:{wanted}", "f" * 64)
        return [store.packages.find_layer("acme", LayerRole.DEPENDENCIES, one, "python3.11") is not None for one in sources]

    assert store.packages.release("acme", 4000) == 1
    assert known() == [True, True, False]
    store.functions.remove("acme", "f", 4000)
    assert store.packages.release("acme", 4000) == 1
    assert known() == [False, False, False]


def test_a_removed_tenant_takes_its_keys_functions_and_packages_with_it(store: Store) -> None:
    key = store.keys.make_key("acme", "ci", 2)
    store.functions.put("acme", "f", SETTINGS, 2)
    store.packages.add_layer("acme", LayerRole.CODE, DIGEST, "python3.11", LayerView(OTHER_DIGEST, 1), 2)
    with pytest.raises(Conflict, match=r"1 functions \(f\)"):
        store.tenants.remove("acme", False, 3)
    assert store.keys.authenticate(key.token, 3) is not None
    store.tenants.remove("acme", True, 4)
    store.tenants.remove("acme", True, 5)
    assert store.keys.authenticate(key.token, 5) is None
    assert store.packages.find("acme", DIGEST) is None
    assert store.packages.find("rival", DIGEST) is not None
    kinds = [kind for kind, _, _ in events(store)]
    assert (kinds.count(EventKind.KEY), kinds.count(EventKind.REMOVED), kinds.count(EventKind.TENANT)) == (2, 1, 1)
    told = store.tenants.published_one("acme")
    assert told is not None and told.removed  # noqa: PT018
    for asked in (
        lambda: store.tenants.describe("acme"),
        lambda: store.keys.make_key("acme", "late", 6),
        lambda: store.keys.list_keys("acme"),
        lambda: store.functions.put("acme", "f", SETTINGS, 6),
        lambda: store.packages.register("acme", DIGEST, 1, 1, (), "", 6),
        lambda: store.tenants.set_quotas("acme", OwnQuotas(), 6),
    ):
        with pytest.raises(NotFound):
            asked()
    with pytest.raises(Conflict, match="never given again"):
        store.tenants.create("acme", OwnQuotas(), 6)
    assert [view.name for view in store.tenants.list()] == ["default", "rival"]


def test_the_tenant_of_the_platform_stays(store: Store) -> None:
    with pytest.raises(Conflict, match="runs the platform"):
        store.tenants.remove("default", True, 2)


def test_nobody_locks_himself_out_and_a_tenant_key_revokes_no_operator(store: Store) -> None:
    only = store.keys.make_key("acme", "only", 2)
    with pytest.raises(Conflict, match="make another one first"):
        store.keys.revoke_key("acme", only.key_id, 3, KeyRole.TENANT, own=True)
    second = store.keys.make_key("acme", "second", 3)
    store.keys.revoke_key("acme", only.key_id, 4, KeyRole.TENANT, own=True)
    store.keys.revoke_key("acme", second.key_id, 4)  # an operator may
    boss = store.keys.make_key("default", "boss", 5, KeyRole.OPERATOR)
    store.keys.make_key("default", "plain", 5)
    with pytest.raises(Conflict, match="only an operator"):
        store.keys.revoke_key("default", boss.key_id, 6, KeyRole.TENANT, own=True)
    with pytest.raises(Conflict, match="last operator key"):
        store.keys.revoke_key("default", boss.key_id, 6, KeyRole.OPERATOR, own=True)
    with pytest.raises(NotFound):
        store.keys.revoke_key("rival", boss.key_id, 6)


def test_keys_are_bounded_and_tell_when_they_were_used_last(store: Store) -> None:
    made = [store.keys.make_key("acme", f"k{number}", number) for number in range(LIVE_KEYS)]
    with pytest.raises(Conflict, match="limit"):
        store.keys.make_key("acme", "more", 200)
    store.keys.used({made[0].key_id: 500.0, made[1].key_id: 400.0})
    store.keys.used({made[0].key_id: 300.0})
    views = {view.key_id: view for view in store.keys.list_keys("acme")}
    assert (views[made[0].key_id].last_used, views[made[1].key_id].last_used) == (500.0, 400.0)
    assert views[made[2].key_id].last_used is None
