"""The tables of who may: API keys, ended sessions, owners, and the credentials that owners keep here."""

from datetime import datetime

from sqlalchemy import JSON, BigInteger, Index, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from replaceme_core.ledger.tables import NUMBER, Base

Names = list[str]


class ApiKeyRow(Base):
    """An API key. Rows are never deleted: that a key was ever issued decides whether requests need one."""

    __tablename__ = "api_keys"

    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(36), unique=True)
    owner: Mapped[str] = mapped_column(String(100))
    name: Mapped[str] = mapped_column(String(100))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    """SHA-256 of the key. A slow hash is for passwords; this has 256 random bits."""
    start: Mapped[str] = mapped_column(String(16))
    """The beginning of the key, to recognise it by."""
    scopes: Mapped[Names] = mapped_column(JSON)
    is_local: Mapped[bool] = mapped_column(server_default=false())
    """Made by `replaceme serve` for the command line on the same machine, not issued by a person."""
    requests_per_minute: Mapped[int | None]
    jobs: Mapped[int | None]
    model_bytes: Mapped[int | None] = mapped_column(BigInteger)
    tokens: Mapped[int | None] = mapped_column(BigInteger)
    running_jobs: Mapped[int | None]
    lifetime_seconds: Mapped[int | None]
    """From creation to expiry; a key that replaces this one gets as much again. Null: it does not expire by itself."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_api_keys_owner_number", "owner", "number"), {"sqlite_autoincrement": True})


class EndedSessionRow(Base):
    """A session of the dashboard that somebody has ended by signing out, until it would have ended by itself."""

    __tablename__ = "ended_sessions"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[datetime]


class OwnerRow(Base):
    """What an operator has decided about an owner; one without a row has the defaults of the settings."""

    __tablename__ = "owners"

    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    output_namespaces: Mapped[Names | None] = mapped_column(JSON(none_as_null=True))


class CredentialRow(Base):
    """A token for the Hub that an owner keeps here under a name, encrypted."""

    __tablename__ = "credentials"

    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    sealed: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
