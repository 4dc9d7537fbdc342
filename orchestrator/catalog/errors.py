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
