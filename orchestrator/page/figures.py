"""Numbers as the page says them. Pure."""


def milliseconds(value: float | None) -> str:
    """As many digits as they are worth; seconds from ten seconds on. None: nothing."""
    if value is None:
        return ""
    if value >= 10_000:
        return f"{value / 1000:,.1f} s"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def seconds(value: float) -> str:
    if value >= 3600:
        return f"{value / 3600:,.1f} h"
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def percent(share: float) -> str:
    """Of a share from 0 to 1; never rounded to 0 or 100 when it is not."""
    if 0 < share < 0.01:
        return "< 1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{share * 100:.0f} %"


def count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def megabytes(value: float) -> str:
    return f"{value / 1024:,.1f} GB" if value >= 1024 else f"{value:,.0f} MB"
