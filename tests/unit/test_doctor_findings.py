"""The doctor's judgements: what is ok, what is not, and that each trouble comes with a way out."""

from typing import Any

import pytest

from orchestrator.doctor import findings, microvm
from orchestrator.doctor.findings import Finding, Level
from orchestrator.validity import Validity
from workers.ports import IsolationReport

DAY = 86400.0
LIMITS = {"memory": "cgroup-v2", "pids": "cgroup-v2", "cpu": "cgroup-v2"}


def report(tier: str, *missing: str) -> IsolationReport:
    return IsolationReport("process", tier, LIMITS, missing)


@pytest.mark.parametrize(
    ("level", "finding"),
    [
        ("ok", findings.isolation(report("root+cgroups"), "", True)),
        ("warn", findings.isolation(report("userns", "cpu: no control group"), "", False)),
        ("fail", findings.isolation(report("none", "namespaces: functions see all"), "", False)),
        ("fail", findings.isolation(None, "no interpreter", True)),
        ("ok", findings.builds("userns", "")),
        ("warn", findings.builds("", "userns: unshare refused")),
        ("ok", microvm.qemu((7, 2))),
        ("fail", microvm.qemu((6, 2))),
        ("fail", microvm.qemu(None)),
        ("ok", microvm.guest_image("ab" * 32, True)),
        ("warn", microvm.guest_image("", True)),
        ("warn", microvm.guest_image("", False)),
        ("ok", microvm.disks("mkfs.erofs", True)),
        ("warn", microvm.disks("mkfs.erofs", False)),
        ("ok", findings.open_files(1024, 20000)),
        ("ok", findings.open_files(-1, -1)),
        ("warn", findings.open_files(1024, 4096)),
        ("fail", findings.open_files(256, 512)),
        ("ok", findings.processes(-1)),
        ("warn", findings.processes(1000)),
        ("fail", findings.processes(64)),
        ("ok", findings.namespaces(15000, False)),
        ("ok", findings.namespaces(None, False)),
        ("warn", findings.namespaces(0, True)),
        ("fail", findings.namespaces(0, False)),
        ("ok", findings.control_groups("v2", True, True)),
        ("warn", findings.control_groups("v1", False, False)),
        ("warn", findings.control_groups("none", False, True)),
        ("ok", findings.disk(90_000, 5000, 1.0, "/s")),
        ("ok", findings.disk(90_000, -1, 1.0, "/s")),
        ("warn", findings.disk(500, 5000, 1.0, "/s")),
        ("warn", findings.disk(90_000, 5000, 300.0, "/s")),
        ("fail", findings.disk(90_000, 5000, 3000.0, "/s")),
        ("fail", findings.disk(10, 5000, 1.0, "/s")),
        ("fail", findings.disk(90_000, 3, 1.0, "/s")),
        ("fail", findings.disk(90_000, 5000, None, "/s")),
        ("ok", findings.clock("Redis", 0.4, 0.01)),
        ("ok", findings.clock("Redis", 40.0, 40.0)),
        ("warn", findings.clock("Redis", -2.0, 0.01)),
        ("fail", findings.clock("Redis", 45.0, 0.01)),
        ("ok", findings.drift(0.2001, 0.2)),
        ("warn", findings.drift(3600.2, 0.2)),
        ("ok", findings.python((3, 12))),
        ("fail", findings.python((3, 10))),
        ("ok", findings.runtime("/usr/bin/python3.11", "")),
        ("fail", findings.runtime("", "no python3.11 that sandboxes can run")),
        ("ok", findings.kernel((6, 1))),
        ("warn", findings.kernel((5, 12))),
        ("fail", findings.kernel((5, 4))),
        ("ok", findings.packages({})),
        ("fail", findings.packages({"redis>=6.4": "5.0"})),
        ("ok", findings.schema("0002", "0002", "")),
        ("ok", findings.schema(None, "0002", "")),
        ("warn", findings.schema("0001", "0002", "")),
        ("fail", findings.schema(None, "0002", "the database does not answer")),
        ("ok", findings.release("1.0", ["1.0", "1.0"])),
        ("ok", findings.release("1.0", [])),
        ("warn", findings.release("1.1", ["1.0", "1.1"])),
        ("ok", findings.mode("/s/key", 0o600, 0o600, True)),
        ("ok", findings.mode("/s/key", 0o400, 0o600, True)),
        ("fail", findings.mode("/s/key", 0o640, 0o600, True)),
        ("fail", findings.mode("/s/key", 0o600, 0o600, False)),
        ("ok", findings.certificate("m.pem", Validity(0.0, 365 * DAY), 334 * DAY)),
        ("warn", findings.certificate("m.pem", Validity(0.0, 365 * DAY), 336 * DAY)),
        ("fail", findings.certificate("m.pem", Validity(0.0, 365 * DAY), 365 * DAY)),
        ("ok", findings.certificate("m.pem", Validity(0.0, 6 * DAY), 4.9 * DAY)),
        ("warn", findings.certificate("m.pem", Validity(0.0, 6 * DAY), 5.1 * DAY)),
        ("ok", findings.socket_path("/run/x.sock")),
        ("fail", findings.socket_path("/run/" + "x" * 110)),
        ("ok", findings.port("functions", 8700, False, False, "")),
        ("ok", findings.port("functions", 8700, True, True, "")),
        ("fail", findings.port("functions", 8700, True, False, "")),
        ("fail", findings.port("functions", 80, False, False, "Permission denied")),
        ("ok", findings.reachable("redis", "", 1.0, "start it")),
        ("warn", findings.reachable("redis", "", 300.0, "start it")),
        ("fail", findings.reachable("redis", "refused", 0.0, "start it")),
        ("ok", findings.redis_settings("noeviction", True)),
        ("warn", findings.redis_settings("noeviction", False)),
        ("fail", findings.redis_settings("allkeys-lru", True)),
        ("ok", findings.leftovers([])),
        ("warn", findings.leftovers(["socket gateway.sock"])),
        ("ok", findings.answering("gateway", True, [])),
        ("warn", findings.answering("gateway", True, ["planner: away"])),
        ("fail", findings.answering("gateway", False, [])),
    ],
)
def test_what_is_found_is_judged_and_trouble_has_a_way_out(level: str, finding: Finding) -> None:
    assert finding.level == level
    assert bool(finding.advice) == (finding.level is not Level.OK)


def test_numbers_are_in_the_words(*_: Any) -> None:
    assert "512" in findings.open_files(256, 512).found
    assert "unlimited" in findings.processes(-1).found
    assert findings.clock("Redis", -2.0, 0.0).found == "2.000 s behind Redis"
