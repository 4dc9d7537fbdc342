"""The portable backend of a node that an ordinary user runs: nobody in it is root, anywhere."""

import subprocess
import sys
from pathlib import Path

import pytest
from doubles.servers import tool

pytestmark = [pytest.mark.system, pytest.mark.needs_user]

TESTS = Path(__file__).parents[1]

# A user's namespace stands for the private network's host and the network between: a real Redis at 10.0.1.5, a proxy.
NETWORK = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from doubles.cluster import identity
from doubles.portable_networks import ProxyProcess
from doubles.servers import tool
from orchestrator.authority import Authority
from workers.networks import Proxy, VpcSpec
import msgspec, socket, time

folder, ip = Path(sys.argv[1]), tool("ip", "iproute2")
for words in (("link", "set", "lo", "up"), ("address", "add", "10.0.1.5/32", "dev", "lo")):
    subprocess.run([ip, *words], check=True)
authority = Authority(folder / "authority")
for role, name in (("vpc-proxy", "p1"), ("node", "n1")):
    identity(authority, folder, role, name)
spec = VpcSpec("acme/main", "acme", 1, 1, ("10.0.0.0/16",), proxies=(Proxy("p1", "127.0.0.1:8704"),))
(folder / "spec.json").write_bytes(msgspec.json.encode(spec))

GUARD = [tool("setpriv", "util-linux"), "--pdeathsig", "SIGKILL"]

class Here:
    address = "127.0.0.1"
    start = staticmethod(lambda *command, **options: subprocess.Popen([*GUARD, *command], **options))

command = [tool("redis-server", "redis-server"), "--bind", "10.0.1.5", "--protected-mode", "no", "--dir", str(folder)]
redis = subprocess.Popen([*GUARD, *command], stdout=subprocess.DEVNULL)
proxy = ProxyProcess(Here, "p1", next(folder.glob("vpc-proxy-p1-*")))
try:
    proxy.start([spec])
    for _ in range(200):
        try:
            with socket.create_connection(("10.0.1.5", 6379), 5) as connection:
                connection.sendall(b"SET tenant acme\\r\\n")
                assert connection.recv(100) == b"+OK\\r\\n"
            break
        except OSError:
            time.sleep(0.02)
    done = subprocess.run([tool("unshare", "util-linux"), "--user", "--map-user=1000", "--map-group=1000", sys.executable, "-c",
                           sys.argv[3], *sys.argv[1:3]], timeout=60)
finally:
    redis.kill()
    redis.wait()
    proxy.kill()
    for stream in (proxy.process.stdin, proxy.process.stdout):
        stream.close()
sys.exit(done.returncode)
"""

NODE = """
import asyncio, os, socket, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import msgspec, uvloop
from workers.drivers import syscalls
from workers.drivers.process import isolation
from workers.network.portable.plane import PortablePlane
from workers.networks import VpcSpec
from workers.ports import SandboxNetwork
from workers.rpc.transport import Identity

folder = Path(sys.argv[1])
assert os.geteuid() == 1000
capabilities = next(line for line in open("/proc/self/status") if line.startswith("CapEff"))
assert int(capabilities.split()[1], 16) == 0, capabilities
"""

SANDBOX = """
assert isolation.enter_user_namespace()

def sandbox():
    \"\"\"As the driver makes one: a network namespace of a user namespace below the node's, no say in either.\"\"\"
    ours, its = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(syscalls.NEWUSER)
        isolation.map_ids(os.open("/proc", os.O_PATH), 1000, uid, 1000, gid)
        isolation.fresh_network()
        syscalls.drop_capabilities()
        its.send(b"ready")
        while line := its.recv(100):
            try:
                with socket.create_connection(("10.0.1.5", int(line)), 5) as connection:
                    connection.sendall(b"GET tenant\\r\\n")
                    its.send(b"answer " + connection.recv(100))
            except OSError as error:
                its.send(b"error " + str(error).encode())
        os._exit(0)
    its.close()
    assert ours.recv(100) == b"ready"
    ours.settimeout(10)
    return pid, ours, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

async def main(made):
    files = next(folder.glob("node-n1-*"))
    plane = PortablePlane(Identity(files / "node.key", files / "node.pem", files / "ca.pem"))
    await plane.start()
    await plane.use([msgspec.json.decode((folder / "spec.json").read_bytes(), type=VpcSpec)])
    print((await plane.opened("acme/main", 10)).reason)
    pid, ours, namespace = made

    def ask(port):
        ours.send(b"%d" % port)
        return ours.recv(100)

    network = SandboxNetwork(namespace)
    print(await asyncio.to_thread(ask, 6379))
    await plane.wire(network)
    attached = await plane.attach("acme/main", "none", network)
    print(await asyncio.to_thread(ask, 6379))
    print(await asyncio.to_thread(ask, 9))
    attached.detach()
    ours.close()
    os.close(namespace)
    os.waitpid(pid, 0)
    await plane.stop()

uvloop.run(main(sandbox()))
"""

NOT_ENTERED = """
async def main():
    try:
        await PortablePlane(None).start()
    except PermissionError as error:
        print(error.strerror)
asyncio.run(main())
"""


def run(node: str, folder: Path) -> list[str]:
    tool("redis-server", "redis-server")
    command = [tool("unshare", "util-linux"), "--user", "--map-root-user", "--net", sys.executable, "-W", "error", "-c", NETWORK]
    done = subprocess.run(
        [*command, str(folder), str(TESTS), NODE + node], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return [line for line in done.stdout.splitlines() if "[info" not in line and "[warning" not in line]


def test_an_ordinary_users_function_reaches_a_private_network(tmp_path: Path) -> None:
    state, before, answer, refused = run(SANDBOX, tmp_path)
    assert state.startswith("portable, by p1 at 127.0.0.1:8704")
    assert "unreachable" in before
    assert answer == repr(b"answer $4\r\nacme\r\n")
    assert "reset" in refused


def test_a_node_that_may_not_enter_its_sandboxes_says_so(tmp_path: Path) -> None:
    (said,) = run(NOT_ENTERED, tmp_path)
    assert "may not enter its sandboxes' network namespaces" in said
