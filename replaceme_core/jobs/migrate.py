"""Bring a database to the newest version (signature first; the body follows)."""


def upgrade(url: str) -> None:
    """Apply all missing migrations. Safe where several processes start at once. Raises `DatabaseUnreachable`."""
    raise NotImplementedError
