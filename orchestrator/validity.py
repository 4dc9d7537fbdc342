"""How long a certificate counts, when it is renewed, and when its holder must worry. Pure; times are seconds since the epoch."""

import datetime

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

RENEW_FROM = 2 / 3  # of the life; the rest is for a control that is away
SPREAD = 1 / 12  # of the life: those that joined in one hour do not all ask in one hour
WARN_S = 30 * 86400.0
WARN_SHARE = 1 / 6  # of a short life: by then several renewals have failed
RETRY_S = (1.0, 3600.0)
RETRY_SHARE = 1 / 20  # of what is left


class Validity(msgspec.Struct, frozen=True):
    """`mark`: 0 to 1, the certificate's own, the same whenever it is read."""

    begins: float
    ends: float
    mark: float = 0.0

    @property
    def life(self) -> float:
        return self.ends - self.begins

    def renew_at(self) -> float:
        return self.begins + self.life * (RENEW_FROM + SPREAD * self.mark)

    def retry_in(self, now: float) -> float:
        """Seconds until the next try after one that failed: the nearer the end, the sooner."""
        least, most = RETRY_S
        return min(most, max(least, (self.ends - now) * RETRY_SHARE))

    def ended(self, now: float) -> bool:
        return now >= self.ends

    def ends_soon(self, now: float) -> bool:
        """It should have been renewed long ago."""
        return self.ends - now <= min(WARN_S, self.life * WARN_SHARE)

    def end(self) -> str:
        """As people read it."""
        return datetime.datetime.fromtimestamp(self.ends, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def validity(pem: str) -> Validity:
    """Of the first certificate in a text. Raises ValueError."""
    certificate = x509.load_pem_x509_certificate(pem.encode())
    mark = int.from_bytes(certificate.fingerprint(hashes.SHA256())[:6]) / 2**48
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp(), mark)
