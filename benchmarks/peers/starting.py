"""Which peers a topic runs beside ours; one that cannot be set up is left out with its reason."""

import contextlib
from collections.abc import Sequence

from benchmarks.peers.environments import PeerMissing
from benchmarks.peers.servers import Peer
from benchmarks.report import Report


def started(peers: Sequence[Peer], stack: contextlib.ExitStack, report: Report) -> list[Peer]:
    """Those that answer; `stack` ends them."""
    running = []
    for peer in peers:
        report.progress(f"starting {peer.name}")
        try:
            running.append(stack.enter_context(peer))
        except PeerMissing as missing:
            report.note(f"without {missing}")
    return running
