"""What the catalog refuses, in words for the one who asked."""


class CatalogError(Exception):
    """Nothing was changed."""


class NotFound(CatalogError):
    """It does not exist, or belongs to somebody else: the two are not told apart."""


class Refused(CatalogError):
    """The request breaks a rule; `field` names what to change."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class Conflict(CatalogError):
    """What exists stands against it; the message says what to do first. `field`: the part of the request that it is about, if it
    is about one."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class OverQuota(CatalogError):
    """The tenant has used up a quota; the message says which, how much of it, and who can raise it."""

    def __init__(self, message: str, quota: str) -> None:
        super().__init__(message)
        self.quota = quota
