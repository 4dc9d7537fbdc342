"""What a link carries: streams (TCP) and flows (datagrams). Each is one end; the peer's is at the other end of the link."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from workers.network.portable.credit import Budget, Receiving, Sending
from workers.network.portable.legs import Leg
from workers.network.portable.words import FIRST_WINDOW, MAX_DATA, Kind, LinkError, Open, Reason

if TYPE_CHECKING:
    from workers.network.portable.link import Link


Answered = Callable[[Reason | None], None]


class Full(Exception):
    """No stream more: one of the limits is reached; the message names it."""


class Stream:
    """One end of a stream: the way of a leg. It is in the link's table until both sides have said EOF or one said RESET."""

    def __init__(self, link: "Link", ident: int, to: Open, budget: Budget, answered: Answered | None = None) -> None:
        """`answered` is called once with the proxy's answer to the OPEN, None: accepted; or with why the link was lost before
        it. Raises Full."""
        if not budget.take(FIRST_WINDOW):
            raise Full(f"the streams of this process hold {budget.held} bytes of windows")
        self.ident = ident
        self.to = to
        self._link = link
        self._answered = answered
        self._leg: Leg | None = None
        self._in = Receiving(budget)
        self._out = Sending()
        self._sent_eof = self._got_eof = self._over = False

    @property
    def over(self) -> bool:
        return self._over

    def join(self, leg: Leg) -> None:
        """From now on it is the leg's way. Either may be over: then so is the other."""
        if self._over or leg.over:
            leg.reset()
            self.gone()
            return
        self._leg = leg
        leg.join(self)

    # -- the leg's way

    def room(self) -> int:
        if self._over:
            return 0
        if self._link.congested:
            self._link.waiting[self.ident] = self
            return 0
        credit = self._out.credit
        return credit if credit < MAX_DATA else MAX_DATA

    def data(self, chunk: bytes) -> None:
        if not self._over:
            self._out.spend(len(chunk))
            self._link.send_data(self.ident, chunk)

    def taken(self, amount: int) -> None:
        if self._over or self._got_eof:
            return
        credit = self._in.taken(amount)
        if credit:
            self._link.send_credit(self.ident, credit)

    def eof(self) -> None:
        if not self._over and not self._sent_eof:
            self._sent_eof = True
            self._link.send(Kind.EOF, self.ident)
            self._perhaps_done()

    def gone(self) -> None:
        if not self._over:
            self._link.send(Kind.RESET, self.ident)
            self._end()

    def closed(self) -> None:
        self._leg = None
        if self._over:
            self._in.close()

    # -- from the link

    def on_answer(self, refused: Reason | None) -> None:
        answered, self._answered = self._answered, None
        if answered is None:
            raise LinkError(f"stream {self.ident} is answered twice")
        if refused is not None:
            self._end()
        answered(refused)

    def on_data(self, body: bytes) -> None:
        self._in.came(len(body))
        if self._got_eof or self._leg is None:
            raise LinkError(f"data for stream {self.ident}, which does not expect any")
        self._leg.write(body)

    def on_credit(self, amount: int) -> None:
        self._out.more(amount)
        self.go_on()

    def on_eof(self) -> None:
        if self._got_eof or self._leg is None:
            raise LinkError(f"end of stream {self.ident}, which does not expect one")
        self._got_eof = True
        self._leg.write_eof()
        self._perhaps_done()

    def on_reset(self) -> None:
        answered, self._answered = self._answered, None
        self._end()
        if self._leg is not None:
            self._leg.reset()
        elif answered is not None:
            answered(Reason("refused", "reset"))

    def give_up(self, why: str) -> None:
        """Nobody has answered and perhaps nobody will: whoever asked may ask elsewhere."""
        if self._answered is not None:
            self._link.send(Kind.RESET, self.ident)
            self.lost(why)

    def go_on(self) -> None:
        """There may be room now."""
        if self._leg is not None:
            self._leg.go_on()

    def lost(self, why: str) -> None:
        """The link is gone."""
        answered, self._answered = self._answered, None
        self._end()
        if answered is not None:
            answered(Reason("closing", why))
        elif self._leg is not None:
            self._leg.reset()

    def reset(self) -> None:
        """This side ends it, the peer and the leg see a reset."""
        if self._over:
            return
        leg = self._leg
        self.gone()
        if leg is not None:
            leg.reset()

    def refuse(self, reason: Reason) -> None:
        """The proxy's side, before it joined a leg."""
        if not self._over:
            self._link.say(Kind.REFUSED, self.ident, reason)
            self._end()

    def _perhaps_done(self) -> None:
        if self._sent_eof and self._got_eof:
            self._end()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            if self._leg is None:
                self._in.close()  # else once the leg is rid of what it holds
            self._link.forget(self.ident)


class Flow:
    """One end of a flow of datagrams. `on_datagram` gets what comes; `on_end` is called once when it is over, but not by
    `end`."""

    def __init__(
        self, link: "Link", ident: int, to: Open, on_datagram: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> None:
        self.ident = ident
        self.to = to
        self._link = link
        self._on_datagram = on_datagram
        self._on_end = on_end
        self._over = False

    def send(self, payload: bytes) -> None:
        """One datagram; dropped when the link is behind, as networks do."""
        if not self._over and not self._link.congested and len(payload) <= MAX_DATA:
            self._link.send(Kind.DATAGRAM, self.ident, b"", payload)

    def on_datagram(self, body: bytes) -> None:
        self._on_datagram(body)

    def on_answer(self, refused: Reason | None) -> None:
        if refused is not None:
            self.lost(refused.text)

    def on_reset(self) -> None:
        self.lost("")

    def lost(self, why: str) -> None:
        if not self._over:
            self._over = True
            self._link.forget(self.ident)
            self._on_end()

    def end(self) -> None:
        if not self._over:
            self._over = True
            self._link.send(Kind.RESET, self.ident)
            self._link.forget(self.ident)

    def reset(self) -> None:
        if not self._over:
            self.end()
            self._on_end()

    def give_up(self, why: str) -> None:
        """Datagrams may be lost: it goes on."""
