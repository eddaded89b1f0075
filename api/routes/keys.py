"""API keys and their owners, for administrators, and credentials of callers.

Credentials are tokens for the Hub that a caller keeps here, to name them in jobs.
"""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import AfterValidator, Field, SecretStr, StringConstraints

from api.bodies import KeyId, KeyRequest, KeyRotationRequest, OwnerName, OwnerRequest, PageQuery
from api.http.hosts import root_of
from api.http.requests import StrictRoute
from api.http.responses import NO_STORE, UNCHANGED, listed
from api.routes.deps import CallerDep, KeysDep, ReadingSessionDep, ServicesDep, SessionDep
from replaceme_core.hub.port import TOKEN, check_token
from replaceme_core.ledger.keys import ApiKey, CreatedKey, Keys, Owners
from replaceme_core.request.fields import CREDENTIAL_NAME, Frozen
from replaceme_core.shapes import Credential, OwnerSettings, Page

router = APIRouter(tags=["keys"], route_class=StrictRoute)
credentials = APIRouter(tags=["credentials"], route_class=StrictRoute)


class KeysQuery(PageQuery):
    owner: OwnerName | None = None


CredentialPath = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=CREDENTIAL_NAME)]


class CredentialRequest(Frozen):
    """A token for the Hub. It is stored encrypted and never shown again."""

    token: Annotated[SecretStr, AfterValidator(check_token)] = Field(
        min_length=1, max_length=500, json_schema_extra={"pattern": rf"^\s*{TOKEN.pattern}\s*$"}
    )
    """The token, as the Hub shows it."""


# Routes of keys and owners

_ROTATION = KeyRotationRequest()
_READER = {"name": "dashboard", "owner": "team-a", "scopes": ["jobs:read"], "expires_in_seconds": 7_776_000}


@router.post("/keys", status_code=HTTPStatus.CREATED)
def create_key(
    body: Annotated[KeyRequest, Body(examples=[_READER])],
    keys: KeysDep,
    caller: CallerDep,
    request: Request,
    response: Response,
) -> CreatedKey:
    """Create a key. Its text is in this response only."""
    created = keys.create(body.to_new(owner=caller))
    response.headers["Location"] = f"{root_of(request.scope)}/keys/{created.id}"
    response.headers["Cache-Control"] = NO_STORE
    return created


@router.get("/keys", response_model=Page[ApiKey], responses=UNCHANGED)
def list_keys(query: Annotated[KeysQuery, Query()], session: ReadingSessionDep, request: Request) -> Response:
    """The keys of all owners, newest first, revoked ones included."""
    page = Keys(session).page(limit=query.limit, cursor=query.cursor, owner=query.owner)
    return listed(Page[ApiKey].of(page), request=request)


@router.get("/keys/{key_id}")
def get_key(key_id: KeyId, session: ReadingSessionDep) -> ApiKey:
    """A key."""
    return Keys(session).get(key_id)


@router.delete("/keys/{key_id}")
def revoke_key(key_id: KeyId, keys: KeysDep) -> ApiKey:
    """Revoke a key. It stays in the list. May be repeated."""
    return keys.revoke(key_id)


@router.post("/keys/{key_id}/rotate", status_code=HTTPStatus.CREATED)
def rotate_key(
    key_id: KeyId,
    keys: KeysDep,
    response: Response,
    body: Annotated[KeyRotationRequest, Body(examples=[{}])] = _ROTATION,
) -> CreatedKey:
    """Replace a key by a new one with the same rights. The old one ends after `overlap_seconds`."""
    response.headers["Cache-Control"] = NO_STORE
    return keys.rotate(key_id, overlap_seconds=body.overlap_seconds)


@router.get("/owners/{owner}")
def get_owner(owner: OwnerName, session: ReadingSessionDep) -> OwnerSettings:
    """Where results of an owner may go."""
    return OwnerSettings(owner=owner, output_namespaces=Owners(session).output_namespaces(owner))


@router.put("/owners/{owner}")
def set_owner(
    owner: OwnerName,
    body: Annotated[OwnerRequest, Body(examples=[{"output_namespaces": ["team-a"]}])],
    session: SessionDep,
) -> OwnerSettings:
    """Say where results of an owner may go."""
    Owners(session).set_output_namespaces(owner, body.output_namespaces)
    return OwnerSettings(owner=owner, output_namespaces=Owners(session).output_namespaces(owner))


# Routes of credentials


@credentials.get("/credentials", response_model=Page[Credential], responses=UNCHANGED)
def list_credentials(session: ReadingSessionDep, caller: CallerDep, request: Request) -> Response:
    """Your credentials by name, without their tokens."""
    return listed(Page(items=tuple(Owners(session).credentials(caller))), request=request)


@credentials.put("/credentials/{name}")
def put_credential(
    name: CredentialPath,
    body: Annotated[CredentialRequest, Body(examples=[{"token": "hf_..."}])],
    session: SessionDep,
    services: ServicesDep,
    caller: CallerDep,
) -> Credential:
    """Store a token under a name, in place of an earlier one. No response shows it again."""
    token = body.token.get_secret_value()
    return Owners(session).put_credential(caller, name, token, box=services.secrets_box)


@credentials.delete("/credentials/{name}", status_code=HTTPStatus.NO_CONTENT)
def delete_credential(name: CredentialPath, session: SessionDep, caller: CallerDep) -> None:
    """Delete a credential. Jobs that name it and have not started will fail."""
    Owners(session).delete_credential(caller, name)
