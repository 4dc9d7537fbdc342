"""What was found, and the judgements: pure functions from what a probe saw to a finding."""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec

from orchestrator.validity import Validity
from workers.ports import IsolationReport

MIN_PYTHON = (3, 11)
MIN_KERNEL = (5, 12)  # mount_setattr
LANDLOCK_KERNEL = (5, 13)
NOFILE_NEEDED, NOFILE_WANTED = 1024, 8192
NPROC_NEEDED, NPROC_WANTED = 256, 2048
FREE_NEEDED_MB, FREE_WANTED_MB = 64, 2048
FSYNC_SLOW_MS, FSYNC_BROKEN_MS = 100.0, 2000.0
SKEW_WARN_S, SKEW_FAIL_S = 1.0, 30.0
DRIFT_WARN = 0.01
MAX_SOCKET_PATH = 107  # sun_path holds 108 bytes with its end
SLOW_MS = 50.0
NEW_CERTIFICATE = (
    "`foreglow nodes remove NAME` and `foreglow node-token` beside control, then `foreglow join` here again; beside control "
    "restart the process; for an authority, remove its folder and join every host anew"
)


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """`advice` says what to do when the level is not ok."""

    probe: str
    level: Level
    found: str
    advice: str = ""


def ok(probe: str, found: str) -> Finding:
    return Finding(probe, Level.OK, found)


def warn(probe: str, found: str, advice: str) -> Finding:
    return Finding(probe, Level.WARN, found, advice)


def fail(probe: str, found: str, advice: str) -> Finding:
    return Finding(probe, Level.FAIL, found, advice)


# -- the machine


def isolation(report: IsolationReport | None, error: str, root: bool) -> Finding:
    """`report` of a driver that really made a sandbox; None with its error."""
    if report is None:
        return fail(
            "isolation", f"no sandbox could be made: {error}", "allow user namespaces for this user, or run the node as root"
        )
    missing = "; ".join(report.missing)
    if not report.isolated:
        return fail(
            "isolation",
            f"tier {report.tier}: {missing}",
            "allow user namespaces, run the node as root, or use --allow-no-isolation",
        )
    if missing:
        advice = "nothing to do, if that is enough for your functions" if not root else "mount control groups for this process"
        return warn("isolation", f"tier {report.tier}; not in force: {missing}", advice)
    return ok("isolation", f"tier {report.tier}, " + ", ".join(f"{what} by {means}" for what, means in report.limits.items()))


def builds(tier: str, why: str) -> Finding:
    """`tier`: what a source build gets here, empty when none can be isolated, for the reasons in `why`."""
    if not tier:
        advice = "needed for build = true only: allow user namespaces for flow's user, or run flow as root"
        return warn("source builds", f"no build sandbox could be made: {why}", advice)
    return ok("source builds", f"tier {tier}")


def tunnels(refused: Mapping[str, str], error: str) -> Finding:
    """`refused`: by backend of private networks why it does not work here, empty where it does."""
    good = [backend for backend, why in refused.items() if not why]
    lacking = "; ".join(f"{backend}: {why}" for backend, why in refused.items() if why)
    if good:
        return ok("tunnels", ", ".join(good) + (f" (not {lacking})" if lacking else ""))
    advice = "private networks are not reached from this node; others may be"
    return warn("tunnels", (lacking or error)[:300], advice)


def lazy_starts(why_not: str) -> Finding:
    """`why_not`: empty when a layer was really mounted and read."""
    if why_not:
        return warn(
            "lazy starts",
            f"not possible here: {why_not}; a large package is fetched whole before its function starts",
            "nothing to do without large packages; else run the node as root, or let its user read and write /dev/fuse",
        )
    return ok("lazy starts", "a function of a large package starts before all of the package is here")


def open_files(soft: int, hard: int) -> Finding:
    """The node raises its soft limit to the hard one. -1 is no limit."""
    if hard != -1 and hard < NOFILE_NEEDED:
        return fail(
            "open files",
            f"at most {hard} (RLIMIT_NOFILE)",
            f"raise the hard limit to {NOFILE_WANTED} or more (LimitNOFILE=, ulimit -Hn)",
        )
    if hard != -1 and hard < NOFILE_WANTED:
        return warn("open files", f"at most {hard} (RLIMIT_NOFILE)", f"{NOFILE_WANTED} let the node keep a few hundred instances")
    return ok("open files", f"soft {_limit(soft)}, hard {_limit(hard)}")


def processes(soft: int) -> Finding:
    if soft != -1 and soft < NPROC_NEEDED:
        return fail(
            "processes",
            f"at most {soft} of this user (RLIMIT_NPROC)",
            f"raise the limit to {NPROC_WANTED} or more (LimitNPROC=, ulimit -u)",
        )
    if soft != -1 and soft < NPROC_WANTED:
        return warn(
            "processes", f"at most {soft} of this user (RLIMIT_NPROC)", "each instance is a process or more; raise the limit"
        )
    return ok("processes", f"limit {_limit(soft)}")


def namespaces(allowed: int | None, root: bool) -> Finding:
    """`allowed`: user.max_user_namespaces, None when the kernel does not say."""
    if allowed == 0:
        judged = warn if root else fail
        return judged("user namespaces", "none allowed", "sysctl user.max_user_namespaces=15000")
    return ok("user namespaces", "allowed" if allowed is None else f"up to {allowed}")


def control_groups(version: str, writable: bool, root: bool) -> Finding:
    """`version`: v1, v2 or none; `writable`: this process may make groups below its own."""
    if version == "none":
        return warn(
            "control groups",
            "none mounted",
            "memory is held by rlimits and a watchdog; mount cgroup2 to have it held by the kernel",
        )
    if not writable:
        advice = "mount them writable" if root else "run the node under systemd with Delegate=yes, or as root"
        return warn("control groups", f"{version}, not writable by this user", advice)
    return ok("control groups", f"{version}, writable")


def disk(free_mb: float, free_files: int, fsync_ms: float | None, where: str) -> Finding:
    """`fsync_ms` None: nothing can be written there. `free_files` 0 is not told by every file system: -1 then."""
    if fsync_ms is None:
        return fail("disk", f"{where} cannot be written", "give this user the folder, or choose another with --state")
    if free_mb < FREE_NEEDED_MB or 0 <= free_files < 1000:
        return fail(
            "disk",
            f"{where} has {free_mb:.0f} MB and {_files(free_files)} free",
            f"free {FREE_NEEDED_MB} MB or more, or choose --state",
        )
    if fsync_ms > FSYNC_BROKEN_MS:
        return fail(
            "disk",
            f"one fsync in {where} took {fsync_ms:.0f} ms",
            "put the state folder on another disk: every deploy waits for it",
        )
    if fsync_ms > FSYNC_SLOW_MS:
        return warn(
            "disk", f"one fsync in {where} took {fsync_ms:.0f} ms", "deploys wait for that; a faster disk makes them faster"
        )
    if free_mb < FREE_WANTED_MB:
        return warn(
            "disk",
            f"{where} has {free_mb:.0f} MB free",
            f"code, logs and the database grow there; {FREE_WANTED_MB} MB are comfortable",
        )
    return ok("disk", f"{free_mb / 1024:.1f} GB free, fsync {fsync_ms:.1f} ms in {where}")


def clock(of: str, ahead_s: float, uncertain_s: float) -> Finding:
    """`ahead_s`: this machine's clock less that of `of`, known to within `uncertain_s`."""
    skew = max(0.0, abs(ahead_s) - uncertain_s)
    advice = "run chrony or systemd-timesyncd on both machines"
    found = f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} {of}"
    if skew > SKEW_FAIL_S:
        return fail("clock", found, advice)
    if skew > SKEW_WARN_S:
        return warn("clock", found, advice)
    return ok("clock", f"within {skew + uncertain_s:.3f} s of {of}")


def drift(wall_s: float, steady_s: float) -> Finding:
    """The same while by the wall clock and by the steady one."""
    off = abs(wall_s - steady_s) / max(steady_s, 1e-6)
    if off > DRIFT_WARN:
        return warn(
            "clock", f"stepped by {wall_s - steady_s:+.4f} s in {steady_s:.2f} s", "it is being set; look again in a minute"
        )
    return ok("clock", "steady")


# -- versions


def python(version: tuple[int, int]) -> Finding:
    name = ".".join(map(str, version))
    if version < MIN_PYTHON:
        return fail("python", name, "install Foreglow for Python 3.11 or later")
    return ok("python", name)


def runtime(path: str, error: str) -> Finding:
    """The interpreter of functions."""
    if error:
        return fail("runtime", error[:300], "install python3.11 where every user may execute it, or set FOREGLOW_PYTHON")
    return ok("runtime", path)


def kernel(version: tuple[int, int]) -> Finding:
    name = ".".join(map(str, version))
    if version < MIN_KERNEL:
        return fail("kernel", name, f"the process driver needs Linux {'.'.join(map(str, MIN_KERNEL))} or later")
    if version < LANDLOCK_KERNEL:
        return warn("kernel", f"{name}, without Landlock", "the read-only root stands alone; 5.13 adds a second wall")
    return ok("kernel", name)


def packages(broken: Mapping[str, str]) -> Finding:
    """`broken`: requirement -> what is installed instead."""
    if broken:
        told = ", ".join(f"{wanted} (found {found})" for wanted, found in sorted(broken.items()))
        return fail("packages", told, "install Foreglow again, into an environment of its own")
    return ok("packages", "as required")


def schema(current: str | None, head: str, error: str) -> Finding:
    if error:
        return fail("schema", error, "see `database`")
    if current is None:
        return ok("schema", f"no database yet; the first start makes {head}")
    if current != head:
        return warn(
            "schema", f"{current}, this release knows {head}", "`foreglow control` migrates when it starts; make a backup first"
        )
    return ok("schema", current)


def release(installed: str, running: Sequence[str]) -> Finding:
    """`running`: releases of the processes that answer."""
    others = sorted(set(running) - {installed})
    if others:
        return warn("release", f"{installed} is installed, {', '.join(others)} runs", "restart what runs")
    return ok("release", installed)


# -- the installation


def mode(what: str, found: int, allowed: int, ours: bool) -> Finding:
    """`found`, `allowed`: permission bits."""
    if not ours:
        return fail("files", f"{what} belongs to another user", f"chown it to the user that runs Foreglow: {what}")
    if found & ~allowed:
        return fail("files", f"{what} has mode {found:04o}: others may read what is secret", f"chmod {allowed:o} {what}")
    return ok("files", f"{what} {found:04o}")


def certificate(what: str, held: Validity, now: float) -> Finding:
    """Renewing begins at two thirds of its life: what ends soon was not renewed."""
    if held.ended(now):
        return fail("certificates", f"{what} ended on {held.end()}", NEW_CERTIFICATE)
    if held.ends_soon(now):
        advice = f"see `certificate.not_renewed` in the log of its process; when it has ended: {NEW_CERTIFICATE}"
        return warn("certificates", f"{what} ends on {held.end()}", advice)
    return ok("certificates", f"{what} until {held.end()}")


def socket_path(path: str) -> Finding:
    if len(path.encode()) > MAX_SOCKET_PATH:
        return fail("sockets", f"{path} is longer than {MAX_SOCKET_PATH} bytes", "set XDG_RUNTIME_DIR to a shorter folder")
    return ok("sockets", path)


def port(name: str, number: int, taken: bool, ours: bool, error: str) -> Finding:
    """`taken`: somebody listens there; `ours`: this installation runs and says it is there."""
    option = f"choose another with --{name}-port (FOREGLOW_{name.upper()}_PORT)"
    if ours:
        return ok("ports", f"{name} {number}: ours")
    if taken:
        return fail("ports", f"{name} {number} is taken by another program", option)
    if error:
        return fail("ports", f"{name} {number}: {error}", option)
    return ok("ports", f"{name} {number} is free")


def reachable(what: str, error: str, took_ms: float, advice: str) -> Finding:
    if error:
        return fail(what, error, advice)
    if took_ms > SLOW_MS:
        return warn(what, f"answers in {took_ms:.0f} ms", "deploys and routes wait for it; bring it nearer")
    return ok(what, f"answers in {took_ms:.1f} ms")


def redis_settings(policy: str, persistent: bool) -> Finding:
    if policy not in ("", "noeviction"):
        return fail(
            "redis settings", f"maxmemory-policy is {policy}", "set it to noeviction: what lies there are routes and open events"
        )
    if not persistent:
        return warn(
            "redis settings",
            "nothing is written to disk",
            "set appendonly yes: else a restart waits for the routes to be rebuilt",
        )
    return ok("redis settings", "noeviction, persistent")


def leftovers(found: Sequence[str]) -> Finding:
    if found:
        return warn("leftovers", "; ".join(found), "the next `foreglow up` on this state folder ends and removes them")
    return ok("leftovers", "none")


def answering(name: str, ready: bool, reasons: Sequence[str]) -> Finding:
    """A process that runs, and why it is not ready."""
    if not ready:
        return fail("process", f"{name}: {'; '.join(reasons) or 'does not answer'}", f"see logs/{name}.log in the state folder")
    if reasons:
        return warn("process", f"{name}: {'; '.join(reasons)}", f"see logs/{name}.log in the state folder")
    return ok("process", f"{name} is ready")


def _limit(number: int) -> str:
    return "unlimited" if number == -1 else str(number)


def _files(number: int) -> str:
    return "files" if number < 0 else f"{number} files"
