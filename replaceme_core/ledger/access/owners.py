"""All SQL about owners: what an operator has decided about them, and the credentials that they keep here."""

import json
from collections.abc import Mapping, Sequence

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from replaceme_core.errors import AccessDenied, CredentialNotFound, InvalidInput, SecretUnreadable
from replaceme_core.ledger.access.records import Credential
from replaceme_core.ledger.access.tables import CredentialRow, OwnerRow
from replaceme_core.ledger.clock import now
from replaceme_core.ledger.tables import Base
from replaceme_core.secrets_box import SecretsBox

MOST_CREDENTIALS = 100
"""Of one owner."""


class Owners:
    """The owners within one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def output_namespaces(self, owner: str) -> tuple[str, ...] | None:
        """Where the owner's results may go; `None`: where those of everybody may."""
        found = self._session.scalar(select(OwnerRow.output_namespaces).where(OwnerRow.owner == owner))
        return tuple(found) if found else None

    def set_output_namespaces(self, owner: str, names: Sequence[str] | None) -> None:
        """Replace what was set before; `None` or an empty list: as for everybody."""
        values = {"output_namespaces": list(names or ()) or None}
        self._put(OwnerRow, {"owner": owner}, values, first={})

    def credentials(self, owner: str) -> list[Credential]:
        """All credentials of the owner, by name."""
        rows = self._session.scalars(
            select(CredentialRow).where(CredentialRow.owner == owner).order_by(CredentialRow.name)
        )
        return [_to_credential(row) for row in rows]

    def put_credential(self, owner: str, name: str, token: str, *, box: SecretsBox) -> Credential:
        """Store a token under a name, in place of an earlier one. Raises `InvalidInput`."""
        sealed = _seal(token, owner=owner, name=name, box=box)
        there = [one.name for one in self.credentials(owner)]
        if name not in there and len(there) >= MOST_CREDENTIALS:
            raise InvalidInput(f"expected at most {MOST_CREDENTIALS} credentials; delete one first", field="name")
        values = {"sealed": sealed, "updated_at": now()}
        self._put(CredentialRow, {"owner": owner, "name": name}, values, first={"created_at": now()})
        return next(one for one in self.credentials(owner) if one.name == name)

    def delete_credential(self, owner: str, name: str) -> None:
        """Raises `CredentialNotFound`."""
        is_it = (CredentialRow.owner == owner, CredentialRow.name == name)
        if self._session.scalars(delete(CredentialRow).where(*is_it).returning(CredentialRow.name)).first() is None:
            raise CredentialNotFound(f"there is no credential {name!r}")

    def token(self, owner: str, name: str, *, box: SecretsBox) -> str:
        """The token of a credential. Raises `InvalidInput` (field `credential`), and `AccessDenied`."""
        sealed = self._session.scalar(
            select(CredentialRow.sealed).where(CredentialRow.owner == owner, CredentialRow.name == name)
        )
        if sealed is None:
            raise InvalidInput(f"there is no credential {name!r}", field="credential", value=name)
        return _open(sealed, owner=owner, name=name, box=box)

    def _put(
        self, table: type[Base], key: Mapping[str, object], values: Mapping[str, object], *, first: Mapping[str, object]
    ) -> None:
        """Change the row with this primary key, or insert it; `first` are values of a new row only."""
        change = update(table).filter_by(**key).values(values).returning(*table.__table__.primary_key)
        if self._session.execute(change).first() is not None:
            return
        try:
            with self._session.begin_nested():
                self._session.execute(insert(table).values({**key, **values, **first}))
        except IntegrityError:  # another transaction was faster
            self._session.execute(change)


def _seal(token: str, *, owner: str, name: str, box: SecretsBox) -> str:
    """The token, encrypted together with whose it is. Raises `InvalidInput` where the box has no key."""
    return box.seal(json.dumps([owner, name, token]), field="token")


def _open(sealed: str, *, owner: str, name: str, box: SecretsBox) -> str:
    """Raises `AccessDenied` if the box has no key that fits, or if it was sealed for another owner or name."""
    try:
        *whose, token = json.loads(box.open(sealed))
    except SecretUnreadable:
        raise AccessDenied(
            f"the credential {name!r} cannot be decrypted here; store it again, or ask the operator whether all "
            "processes have the same REPLACEME_ENCRYPTION_KEY"
        ) from None
    if whose != [owner, name]:
        raise AccessDenied(f"the credential {name!r} was stored for another owner or under another name")
    return str(token)


def _to_credential(row: CredentialRow) -> Credential:
    return Credential(owner=row.owner, name=row.name, created_at=row.created_at, updated_at=row.updated_at)
