"""The first process of a microVM: makes the machine ready, keeps the runtime's process, runs no tenant code itself.

Standard library only, beside runtime.py, which it loads as `foreglow`. /init (a shell script) starts it as process 1.

Two virtio-serial ports, by name, both carrying frames (header as in runtime.py):

    foreglow.channel   the guest protocol (SPECIALISE, READY, INVOKE ...), read and written by the runtime's process
    foreglow.init      what only this process does: ToInit and FromInit in workers/drivers/frames.py

A life, seen from the host:

    boot      STANDING {python, uptime_s} comes on init: a runtime waits for SPECIALISE on the channel.
    exercise  as `activate` below with the exercise's function, a few INVOKE; then RENEW on init, and STANDING comes again.
              What is snapshotted or paused after that has its code translated and is as good as new. Any number of times.
    activate  ACTIVATE {entropy, hostname, now?, disks} on init and SPECIALISE on the channel, in any order, written at once.
              No user code runs before ACTIVATE has been done. Without `now` (a cold clone, whose first message is slow to be
              read) ASK_CLOCK comes, and CLOCK {now} is the answer. `disks`: [["vda", "/var/task"], ["vdb", "/opt/deps"]].
              SPECIALISE's meta is the process driver's; code that comes inline is its body, described by `inline` in the meta
              (workers/drivers/microvm/inline.py makes both). READY comes on the channel as ever.
    template  of a function: SPECIALISE with `withheld`, READY, then the snapshot. A clone of it is activated like any other (no
              disks, no code): ACTIVATE on init, SPECIALISE with the environment on the channel, READY after the restore hooks.
    end       EXIT {code | signal, out_of_memory} on init. The machine then waits a second to be killed, and resets itself.

The kernel's command line says what holds for every clone of a template (all optional):

    foreglow.memory_mb=128     of all processes of the function, held by a control group; the machine needs OVERHEAD_MB more
    foreglow.processes=128     likewise
    foreglow.tmp_mb=64         size of /tmp
    foreglow.address=10.0.0.2/24 foreglow.gateway=10.0.0.1    of eth0, when there is one
"""
