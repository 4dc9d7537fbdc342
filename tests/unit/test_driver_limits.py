"""Where control groups are, read from every layout a host may have, and what a cell does with its files."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.drivers import cells, limits, watch
from workers.drivers.cells import Cell, remove
from workers.drivers.limits import Cgroups, Layout, detect

V1 = "36 31 0:32 / /sys/fs/cgroup/{0} rw,relatime shared:9 - cgroup cgroup rw,{0}"
V2 = "41 31 0:38 / {0} rw,relatime - cgroup2 cgroup2 rw,nsdelegate"


def mounts(*lines: str) -> str:
    return "\n".join(["22 27 0:21 / /proc rw,relatime - proc proc rw", "27 1 254:0 / / rw - ext4 /dev/vda rw", *lines, ""])


def test_v1_only() -> None:
    layout = detect(
        mounts(V1.format("memory"), V1.format("pids"), V1.format("freezer")), "4:memory:/a/b\n8:pids:/\n6:freezer:/x\n"
    )
    assert layout == Layout({"memory": "/sys/fs/cgroup/memory/a/b", "pids": "/sys/fs/cgroup/pids"}, "")


def test_controllers_mounted_together() -> None:
    line = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
    assert detect(mounts(line), "3:cpu,cpuacct:/user\n").v1 == {"cpu": "/sys/fs/cgroup/cpu,cpuacct/user"}


def test_v2_only() -> None:
    layout = detect(mounts(V2.format("/sys/fs/cgroup")), "0::/user.slice/user-1000.slice/session.scope\n")
    assert layout == Layout({}, "/sys/fs/cgroup/user.slice/user-1000.slice/session.scope")


def test_hybrid_takes_each_controller_where_it_is() -> None:
    layout = detect(mounts(V1.format("memory"), V2.format("/sys/fs/cgroup/unified")), "4:memory:/m\n0::/u\n")
    assert layout == Layout({"memory": "/sys/fs/cgroup/memory/m"}, "/sys/fs/cgroup/unified/u")


def test_a_container_sees_its_part_of_the_hierarchy_only() -> None:
    line = "36 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
    assert detect(mounts(line), "4:memory:/docker/abc\n").v1 == {"memory": "/sys/fs/cgroup/memory"}
    assert detect(mounts(line), "4:memory:/docker/abc/inner\n").v1 == {"memory": "/sys/fs/cgroup/memory/inner"}


def test_the_group_a_node_made_for_itself_is_not_the_one_it_was_found_in() -> None:
    own = "4:cpu:/service/foreglow-0123456789-77-node\n2:memory:/service\n0::/unified/foreglow-0123456789-77-node\n"
    text = mounts(V1.format("cpu"), V1.format("memory"), V2.format("/sys/fs/cgroup/unified"))
    assert detect(text, own) == Layout(
        {"cpu": "/sys/fs/cgroup/cpu/service", "memory": "/sys/fs/cgroup/memory/service"}, "/sys/fs/cgroup/unified/unified"
    )


def test_none_at_all() -> None:
    assert detect(mounts(), "") == Layout({}, "")
    assert detect("", "") == Layout({}, "")


@given(st.text(), st.text())
def test_garbage_is_no_group(mountinfo: str, own: str) -> None:
    layout = detect(mountinfo, own)
    assert set(layout.v1) <= set(limits.CONTROLLERS)


def test_a_folder_we_may_not_write_is_said_and_left(tmp_path: Path) -> None:
    cgroups = Cgroups(
        Layout({"memory": str(tmp_path / "missing" / "x"), "pids": "/proc/nowhere"}, "/proc/nowhere"), "foreglow-t-1"
    )
    refused = cgroups.open()
    assert not cgroups.usable
    assert {cgroups.kind(controller) for controller in limits.CONTROLLERS} == {"none"}
    assert any("cgroup v1" in line for line in refused)
    assert any("cgroup v2" in line for line in refused)
    cgroups.close()


@pytest.fixture
def v1(tmp_path: Path) -> dict[str, str]:
    files = {
        "memory": {
            "memory.usage_in_bytes": "4096\n",
            "memory.oom_control": "under_oom 0\noom_kill 2\n",
            "memory.force_empty": "",
        },
        "pids": {"pids.current": "3\n"},
        "cpu": {"cpu.shares": "1024\n"},
    }
    folders = {}
    for controller, content in files.items():
        folder = tmp_path / controller
        folder.mkdir()
        for name, text in {**content, "tasks": "", "cgroup.procs": ""}.items():
            (folder / name).write_text(text)
        folders[controller] = str(folder)
    return folders


def test_a_cell_reads_and_writes_its_files(v1: dict[str, str]) -> None:
    cell = Cell(v1, "", 128, 0)
    try:
        assert (cell.memory_bytes(), cell.processes()) == (4096, 3)
        assert len(cell.join) == 3
        cell.speculative(True)
        assert Path(v1["cpu"], "cpu.shares").read_text().startswith(str(cells.YIELDING_SHARES))
        assert not cell.ran_out_of_memory()
        Path(v1["memory"], "memory.oom_control").write_text("oom_kill 3\n")
        assert cell.ran_out_of_memory()
        assert cell.renew()
        assert not cell.ran_out_of_memory()
        assert Path(v1["cpu"], "cpu.shares").read_text().startswith(str(cells.NORMAL_SHARES))
    finally:
        cell.close()


@pytest.mark.parametrize(
    ("controller", "name", "text"), [("memory", "cgroup.procs", "17\n"), ("memory", "memory.usage_in_bytes", str(100 << 20))]
)
def test_a_cell_still_in_use_is_not_used_again(v1: dict[str, str], controller: str, name: str, text: str) -> None:
    cell = Cell(v1, "", 128, 0)
    Path(v1[controller], name).write_text(text)
    assert not cell.renew()
    cell.close()


def test_a_cell_that_cannot_be_opened_leaves_nothing_open(v1: dict[str, str]) -> None:
    Path(v1["cpu"], "tasks").unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Cell(v1, "", 128, 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_removing_what_is_in_use_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "REMOVE_TRIES", 3)
    (tmp_path / "group" / "busy").mkdir(parents=True)
    assert not remove(str(tmp_path / "group"))
    (tmp_path / "group" / "busy").rmdir()
    assert remove(str(tmp_path / "group"))
    assert remove(str(tmp_path / "group"))


def test_what_is_not_ours_to_remove_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups a node of root left, when it was killed, are there for the nodes of everybody: each start would wait for each."""
    monkeypatch.setattr(cells.time, "sleep", lambda _seconds: pytest.fail("it waits"))
    assert not remove("/proc/sys")  # forbidden, for root too


@pytest.mark.parametrize("every", [True, False])
def test_sweep_takes_groups_of_the_dead_and_leaves_those_of_the_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: bool
) -> None:
    monkeypatch.setattr(limits, "HOST_PIDS", os.readlink("/proc/self/ns/pid") if every else "another")
    mine = limits.name_of(tmp_path / "driver", os.getpid())
    dead, alive = limits.name_of(tmp_path / "driver", 2**22 + 1), limits.name_of(tmp_path / "driver", 1)
    elsewhere = limits.name_of(tmp_path / "other", 2**22 + 1)
    for group in (f"{dead}/c1", f"{dead}-node", f"{alive}/c1", f"{mine}/c1", f"{elsewhere}/c1", "foreglow-y", "foreglow-a-b"):
        (tmp_path / group).mkdir(parents=True)
    assert limits.sweep(Layout({"memory": str(tmp_path)}, ""), mine) == (5 if every else 3)
    kept = {alive, mine, "foreglow-y", "foreglow-a-b"} | (set() if every else {elsewhere})
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_sweep_knows_a_number_that_was_given_again_and_one_that_waits_to_be_asked_for(tmp_path: Path) -> None:
    mine = limits.name_of(tmp_path, os.getpid())
    with subprocess.Popen(["sleep", "60"]) as living, subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        groups = [tmp_path / limits.name_of(tmp_path, pid) for pid in (living.pid, ended.pid)]
        for group in groups:
            group.mkdir()
        limits.sweep(Layout({"memory": str(tmp_path)}, ""), mine)
        assert [group.exists() for group in groups] == [True, False]
        os.utime(groups[0], times=(0, time.time() - 60))  # as old as what a predecessor with this number left
        limits.sweep(Layout({"memory": str(tmp_path)}, ""), mine)
        assert not groups[0].exists()
        living.kill()


@pytest.fixture
def aside() -> Iterator[Layout]:
    """Groups below those of this process, out of the way of the drivers that start meanwhile: each sweeps what it finds."""
    own = detect(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    aside = f"aside-{os.getpid()}"
    found = Layout({name: f"{folder}/{aside}" for name, folder in own.v1.items()}, f"{own.v2}/{aside}" if own.v2 else "")
    folders = {*found.v1.values(), *([found.v2] if found.v2 else [])}
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    yield found
    for top in folders:
        for folder, _, _ in os.walk(top, topdown=False):
            remove(folder)


@pytest.mark.needs_root
def test_sweep_ends_what_outlived_its_node(aside: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HOST_PIDS", os.readlink("/proc/self/ns/pid"))
    mine = limits.name_of(Path("/nobody/driver"), os.getpid())
    dead = Cgroups(aside, limits.name_of(Path("/nobody/driver"), 2**22 + 1))
    dead.open()
    if not dead.usable:  # cgroup v2 alone, which hands no controllers on to here: the groups do
        dead.open_v2(())
    cell = dead.take(128, 0)
    with subprocess.Popen(["sleep", "60"]) as orphan:
        for door in cell.doors:
            cells.write(door, str(orphan.pid))
        cell.close()
        assert cell.folders
        limits.sweep(aside, mine)
        assert orphan.wait(30) == -9
    assert not [folder for folder in cell.folders if os.path.exists(folder)]


# -- watching without groups


def test_watching_counts_this_process_and_its_children() -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(read_end, 1)
        os._exit(0)
    try:
        assert pid in watch.members(os.getpid())
        memory, processes = watch.used(os.getpid(), watch.members(os.getpid()), False, 1 << 50)
        assert processes >= 2
        assert memory > 1 << 20
        exact, _ = watch.used(os.getpid(), watch.members(os.getpid()), False, 0)
        assert 0 < exact <= memory
    finally:
        os.write(write_end, b"x")
        os.waitpid(pid, 0)
        os.close(read_end)
        os.close(write_end)
    assert watch.used(pid, [pid], True, 0)[0] == 0
