"""Host users for sandboxes: numbers nobody else is likely to have."""

FIRST_USER, USERS = 200_000, 60_000


def free_users(uid_map: str) -> tuple[int, int]:
    """(first, count) of users nobody else is likely to have, out of those mapped into this namespace."""
    best = (0, 0)
    for line in uid_map.splitlines():
        start, _, length = map(int, line.split())
        if start <= FIRST_USER and start + length >= FIRST_USER + USERS:
            return FIRST_USER, USERS
        count = length // 4
        if count > best[1]:
            best = (start + length - count, count)
    return best
