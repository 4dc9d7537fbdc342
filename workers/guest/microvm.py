"""The first process of a microVM: makes the machine ready, keeps the runtime's process, runs no tenant code itself.

Standard library only, beside runtime.py, which it loads as `foreglow`, and machine.py. It is the image's /init.

Two virtio-serial ports, by name, both carrying frames (header as in runtime.py):

    foreglow.channel   the guest protocol (SPECIALISE, READY, INVOKE ...), read and written by the runtime's process
    foreglow.init      what only this process does: ToInit and FromInit in workers/drivers/frames.py

A life, seen from the host:

    boot      STANDING {python} comes on init: a runtime waits for SPECIALISE on the channel.
    exercise  as `activate` below with the exercise's function, SPECIALISE with `exercise` (a number), so many INVOKE; then
              RENEW on init: what was put in goes, and STANDING comes again. What is snapshotted or paused after that has its
              code translated and is as good as new. Any number of times.
    activate  ACTIVATE {entropy, hostname, now_ns?, disks} on init and SPECIALISE on the channel, in any order, written at once.
              No user code runs before ACTIVATE has been done. Without `now_ns` (a cold clone, whose first message is slow to be
              read) ASK_CLOCK comes, and CLOCK {now_ns} is the answer. `disks`: [["vda", "/var/task"], ["vdb", "/opt/deps"]].
              Code that comes inline: `files` [[path, mode, size]] in ACTIVATE's meta, their bytes one after another its body
              (workers/drivers/microvm/inline.py makes both). SPECIALISE's meta is the process driver's, without descriptors;
              `paths` are the mount points. READY comes on the channel as ever; {step: "attach"} when a disk does not mount.
    template  of a function: SPECIALISE with `withheld`, READY, then HOLD on init, which stops every thread of the function
              (held.py); FROZEN {frozen} is the answer, and the snapshot follows. A clone of it is activated like any other (no
              disks, no code): ACTIVATE on init, SPECIALISE with the environment on the channel, READY after the restore hooks.
              Threads of the import go on when entropy and clock are in force.
    end       EXIT {code | signal, out_of_memory} on init. The machine then waits a second to be killed, and resets itself.

The kernel's command line says what holds for every clone of a template (all optional):

    foreglow.memory_mb=128     of all processes of the function, held by a control group; the machine needs more
    foreglow.processes=128     likewise
    foreglow.tmp_mb=64         size of /tmp
    foreglow.address=10.0.0.2/24 foreglow.gateway=10.0.0.1    of eth0, when there is one
"""

import contextlib
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
import types
from typing import Any

from workers.guest import held, importing, machine, runtime, warmup

ACTIVATE, CLOCK, RENEW, COUNT, HOLD = 33, 34, 35, 36, 37
STANDING, OUTPUT, EXIT, COUNTED, ASK_CLOCK, FROZEN = 49, 50, 51, 52, 53, 54
CHANNEL_PORT, INIT_PORT = "foreglow.channel", "foreglow.init"
RESET_AFTER_S = 1.0
OUTPUT_SIZE = 65536

LAYERS_AT = ("/var/task", "/opt/deps")
CACHE = f"{LAYERS_AT[0]}/__pycache__"  # is there before code comes, which mostly has it
GO, MOST_TOLD, GATE_SIZE = b"1", 32 << 10, (32 << 10) + 1  # the gate's word, and what goes with it: bytes
OURS_AT = "/usr/lib/foreglow"
REHEARSAL = "rehearsal"
REHEARSALS = 24
UID = 1000
OPEN_FILES = 1024
CHANNEL_AT, GATE_AT = 3, 4  # descriptors in the runtime's process


_finder = importing.Finder(LAYERS_AT[0])


class Init:
    """The first process. `run` never returns."""

    def __init__(self) -> None:
        self._settings = machine.Settings(machine.reading("/proc/cmdline"))
        machine.make_group(self._settings)
        machine.bring_up(self._settings)
        self._channel_port, port = map(machine.Port, machine.find_ports(CHANNEL_PORT, INIT_PORT))
        self._host = runtime.Channel(port)
        self._null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._urandom = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(port, select.POLLIN)
        self._port = port.fileno()
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll.register(self._wake, select.POLLIN)
        self._pipes: dict[int, str] = {}  # read ends of the runtime's output
        self._gate: socket.socket
        self._pid = 0
        self._put_in: list[tuple[str, int, int]] = []  # files of an exercise
        self._go = GO  # what the gate says when all is done
        self._held = False
        self._kills = machine.kills()
        cached = f"{REHEARSAL}.{sys.implementation.cache_tag}.pyc"
        with open(f"{OURS_AT}/workers/guest/{REHEARSAL}.py", "rb") as source:
            self._rehearsal = {f"{REHEARSAL}.py": source.read()}
        with open(f"{OURS_AT}/workers/guest/__pycache__/{cached}", "rb") as bytecode:
            self._rehearsal[f"__pycache__/{cached}"] = bytecode.read()

    def run(self) -> None:
        # What the host says to both is done here first, and in one go: each change of process costs an emulated machine dear.
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        self._make_folders()
        _warm()
        self._start()
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._port:
                    while (frame := self._host.read(time.monotonic())) is not None:
                        self._hear(frame)
                elif descriptor == self._wake:
                    self._reap()
                elif descriptor == self._gate.fileno():
                    self._freeze()
                elif descriptor in self._pipes:
                    self._pump(descriptor)

    # -- the runtime's process

    def _make_folders(self) -> None:
        """Empty folders where code goes, an empty /tmp."""
        options = f"size={self._settings.tmp_mb}m,nr_inodes=64k,mode=1777"
        self._mount("tmpfs", "/tmp", "tmpfs", 0, options)  # noqa: S108
        for layer in LAYERS_AT:
            self._mount("tmpfs", layer, "tmpfs", 0, "mode=755")
        os.mkdir(CACHE, 0o755)
        for name, content in self._rehearsal.items():
            with open(f"{LAYERS_AT[0]}/{name}", "wb") as file:
                file.write(content)

    def _mount(self, source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
        machine.mount(source, target, kind, flags | machine.MS_NOSUID | machine.MS_NODEV, options)

    def _start(self) -> None:
        """Forks the runtime, and waits until it waits for SPECIALISE."""
        self._gate, gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (out, child_out), (err, child_err) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        for descriptor in (child_out, child_err):
            os.fchown(descriptor, UID, UID)  # else /dev/stdout could not be opened
        self._pid = os.fork()
        if self._pid == 0:
            _Runtime(self._settings, self._channel_port).run(gate, child_out, child_err, self._null)
        gate.close()
        for descriptor in (child_out, child_err):
            os.close(descriptor)
        for descriptor, stream in ((out, "out"), (err, "err")):
            os.set_blocking(descriptor, False)
            self._pipes[descriptor] = stream
            self._poll.register(descriptor, select.POLLIN)
        if self._gate.recv(16):
            for name in self._rehearsal:
                os.unlink(f"{LAYERS_AT[0]}/{name}")
            self._practise()
            self._stand()

    def _stand(self) -> None:
        self._say(STANDING, {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"})

    def _practise(self) -> None:
        """Activates, of no consequence: what that writes to is shared with the runtime since the fork, and copied now."""
        path = f"{LAYERS_AT[0]}/{REHEARSAL}"
        head = {
            "entropy": os.urandom(32).hex(),
            "hostname": "standby",
            "now_ns": time.time_ns(),
            "disks": [],
            "files": [[CACHE, 0o040755, 0], [path, 0o100644, 1], [path + "2", 0o100644, 1]],
        }
        meta = runtime.dump(head)
        here, there = socket.socketpair()
        with here, there:
            there.sendall(runtime.HEADER.pack(ACTIVATE, 0, 0, 0, len(meta), 2) + meta + b"xx")
            frame = runtime.Channel(here).read(time.monotonic())
        if frame is not None:
            self._prepare(runtime.scan(frame[3]), frame[4])
            machine.remove(self._put_in, CACHE)

    def _pump(self, descriptor: int) -> None:
        """What was written past the runtime, to the host."""
        while True:
            try:
                text = os.read(descriptor, OUTPUT_SIZE)
            except BlockingIOError:
                return
            if not text:
                self._poll.unregister(descriptor)
                del self._pipes[descriptor]
                os.close(descriptor)
                return
            self._say(OUTPUT, {"stream": self._pipes[descriptor]}, text)
            if len(text) < OUTPUT_SIZE:
                return

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 512)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._pid:
                    self._ended(os.waitstatus_to_exitcode(status))

    def _ended(self, code: int) -> None:
        """Never returns: nothing comes after a sandbox."""
        machine.put(f"{machine.CGROUP}/cgroup.kill", "1")
        for descriptor in list(self._pipes):
            self._pump(descriptor)
        how = {"code": code} if code >= 0 else {"signal": -code}
        self._say(EXIT, how | {"out_of_memory": machine.kills() > self._kills})
        time.sleep(RESET_AFTER_S)
        machine.reset()

    # -- the host's wishes

    def _say(self, kind: int, meta: dict[str, Any], body: bytes = b"", ident: int = 0) -> None:
        self._host.send(kind, ident, runtime.dump(meta), body)

    def _hear(self, frame: runtime.Frame) -> None:
        kind, _, ident, meta, body = frame
        if kind == ACTIVATE:
            self._activate(runtime.scan(meta), body)
        elif kind == CLOCK:
            self._set_clock(runtime.scan(meta)["now_ns"])
        elif kind == COUNT:
            memory, processes = (int(machine.reading(f"{machine.CGROUP}/{name}.current")) for name in ("memory", "pids"))
            self._say(COUNTED, {"memory_bytes": memory, "processes": processes}, ident=ident)
        elif kind == RENEW:
            self._renew()
        elif kind == HOLD:
            self._poll.register(self._gate, select.POLLIN)
            self._gate.send(held.HOLD)

    def _freeze(self) -> None:
        """The runtime holds what Python has to hold: now nothing of the function runs any more, until `_open_gate`."""
        self._poll.unregister(self._gate)
        self._held = self._gate.recv(64) == held.HELD and machine.freeze()
        self._say(FROZEN, {"frozen": self._held})

    def _open_gate(self, said: bytes) -> None:
        if self._held:
            self._held = False
            self._gate.send(os.urandom(held.SIZE))
            machine.thaw()
        self._gate.send(said)

    def _activate(self, head: dict[str, Any], body: bytes) -> None:
        try:
            self._prepare(head, body)
        except OSError as error:
            self._open_gate(b" " + str(error).encode()[:4096])
            return
        if "now_ns" in head:
            self._open_gate(self._go)
        else:
            self._say(ASK_CLOCK, {})

    def _prepare(self, head: dict[str, Any], body: bytes) -> None:
        if "now_ns" in head:
            time.clock_settime_ns(time.CLOCK_REALTIME, head["now_ns"])
        if "entropy" in head:
            machine.add_entropy(self._urandom, bytes.fromhex(head["entropy"]))
        if "hostname" in head:
            socket.sethostname(head["hostname"])
        for device, target in head.get("disks", ()):
            self._attach_disk(f"/dev/{device}", target)
        self._put_in = head.get("files", ())
        machine.unpack(self._put_in, body, CACHE)
        self._go = GO + importing.told(LAYERS_AT[0], self._put_in, body, MOST_TOLD)

    def _set_clock(self, now_ns: int) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, now_ns)
        self._open_gate(self._go)

    def _attach_disk(self, device: str, target: str) -> None:
        machine.flush(device)
        self._mount(device, target, "erofs", machine.MS_RDONLY)

    def _renew(self) -> None:
        """The exercise is over."""
        machine.remove(self._put_in, CACHE)
        if self._gate.recv(16):
            self._stand()


class _Runtime:
    """The process user code runs in: without a privilege from the start, since whatever needs one is done by the first."""

    def __init__(self, settings: machine.Settings, port: machine.Port) -> None:
        self._settings, self._port = settings, port
        self._gate: socket.socket

    def run(self, gate: socket.socket, out: int, err: int, null: int) -> None:
        """Never returns."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            machine.put(f"{machine.CGROUP}/cgroup.procs", "0")
            for source, target in ((null, 0), (out, 1), (err, 2)):
                os.dup2(source, target)
            self._keep(gate)
            self._drop()
            machine.map_programs()
            warmup.rehearse(1, LAYERS_AT, REHEARSAL)  # touches now what specialising will write
            gc.enable()
            self._gate.send(b"1")
            instance = warmup.exercised(self._port, self._attach, LAYERS_AT, self._over)
            runtime.live(instance, self._port, self._attach, lambda: held.hold(self._gate))
        except BaseException as error:
            meta = {"init_ms": 0.0, "step": "sandbox", "error": runtime.describe(error)}
            runtime.Channel(self._port).send(runtime.READY, 0, runtime.dump(meta))
        finally:
            os._exit(1)

    def _keep(self, gate: socket.socket) -> None:
        """The port and the gate get known numbers; everything else is closed."""
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for descriptor in (self._port.fileno(), gate.detach())]
        for descriptor, place in zip(high, (CHANNEL_AT, GATE_AT), strict=True):
            os.dup2(descriptor, place, inheritable=False)
        os.closerange(GATE_AT + 1, OPEN_FILES)
        self._port, self._gate = machine.Port(CHANNEL_AT), socket.socket(fileno=GATE_AT)

    def _drop(self) -> None:
        most = self._settings.tmp_mb << 20
        for what, value in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, OPEN_FILES),
            (resource.RLIMIT_FSIZE, most),
            (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_NPROC, self._settings.processes),
        ):
            resource.setrlimit(what, (value, value))
        machine.privileges_gone(UID)

    def _attach(self, meta: dict[str, Any], _descriptors: list[int]) -> None:
        """Between SPECIALISE and the first byte of user code: waits until the machine is activated."""
        said = self._gate.recv(GATE_SIZE)
        if said[:1] != GO:
            raise OSError(said[1:].decode(errors="replace") or "the first process has gone")
        _finder.know(said[1:])
        if meta.get("paths"):
            os.chdir(meta["paths"][0])

    def _over(self) -> None:
        os.chdir("/")
        self._gate.send(b"1")


def _warm() -> None:
    """What every clone has done: modules loaded, the runtime's path worn in."""
    warmup.preload()
    runtime.__name__ = "foreglow"
    for thing in (runtime.InvokeError, runtime.Request, runtime.Context, runtime.Call):
        thing.__module__ = "foreglow"
    sys.modules["foreglow"] = runtime
    for name in [name for name in sys.modules if name.partition(".")[0] == "workers"]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path != OURS_AT]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [""]
    sys.meta_path.insert(len(sys.meta_path) - 1, _finder)
    warmup.rehearse(REHEARSALS, LAYERS_AT, REHEARSAL)
    gc.collect()
    gc.freeze()
    gc.disable()


def main() -> None:
    """In /init. Twice: an interpreter draws its hash seed as it starts, and only modules bring the kernel real entropy."""
    if "again" not in sys.argv:
        machine.prepare_kernel()
        os.getrandom(32)  # waits for it
        os.execv("/init", ["/init", "again"])  # noqa: S606
    Init().run()
