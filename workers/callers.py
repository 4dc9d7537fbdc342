"""Who may speak to a node over the network: the members that control counts, as it told last."""

from collections.abc import Iterable, Sequence

from workers.rpc.messages import Caller
from workers.rpc.transport import LOCAL, Peer

ROLES = ("gateway", "planner", "control", "flow")


class CallerList:
    """Before control told anything (None), a certificate of the cluster and its role are all there is to go by."""

    def __init__(self, told: Iterable[Caller] | None = None) -> None:
        self._told: dict[tuple[str, str], Caller] | None = None if told is None else _by_name(told)

    def admits(self, peer: Peer) -> str:
        """Why it is not let in; empty: it is. What runs beside control is on no list: whoever can read the authority's key may be
        anybody."""
        if peer.role not in ROLES:
            return f"a {peer.role[:63]} has nothing to ask a node"
        if not peer.fingerprint or LOCAL in peer.name or self._told is None:
            return ""
        known = self._told.get((peer.role, peer.name))
        if known is None or not Peer("", "", known.fingerprint, known.fingerprint_before).counts(peer.fingerprint):
            return f"{peer.role} {peer.name[:63]} is no member of this cluster (any more)"
        return ""

    def tell(self, callers: Sequence[Caller], connected: Iterable[Peer]) -> list[Peer]:
        """The list as it is now. Whose connections must end: members that have gone, or joined anew since. One that renewed its
        certificate stays: who is there was proven when the connection began."""
        before, self._told = self._told, _by_name(callers)
        return [peer for peer in connected if self._has_gone(peer, before)]

    def _has_gone(self, peer: Peer, before: dict[tuple[str, str], Caller] | None) -> bool:
        if not self.admits(peer):
            return False
        assert self._told is not None
        name = (peer.role, peer.name)
        then, now = before.get(name) if before is not None else None, self._told.get(name)
        return then is None or now is None or then.epoch != now.epoch


def _by_name(callers: Iterable[Caller]) -> dict[tuple[str, str], Caller]:
    return {(one.role, one.name): one for one in callers}
