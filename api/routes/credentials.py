"""Credentials: tokens for the Hub that the caller keeps here, to name them in jobs."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body

from api.deps import CallerDep, OwnersDep, OwnersToReadDep, ServicesDep
from api.http.requests import StrictRoute
from api.schemas.body import ListBody
from api.schemas.credentials import CredentialBody, CredentialPath, CredentialRequest

router = APIRouter(tags=["credentials"], route_class=StrictRoute)


@router.get("/credentials")
def list_credentials(owners: OwnersToReadDep, caller: CallerDep) -> ListBody[CredentialBody]:
    """Your credentials by name, without their tokens."""
    return ListBody(items=[CredentialBody.of(one) for one in owners.credentials(caller)])


@router.put("/credentials/{name}")
def put_credential(
    name: CredentialPath,
    body: Annotated[CredentialRequest, Body(examples=[{"token": "hf_..."}])],
    owners: OwnersDep,
    services: ServicesDep,
    caller: CallerDep,
) -> CredentialBody:
    """Store a token under a name, in place of an earlier one. No response shows it again."""
    token = body.token.get_secret_value()
    return CredentialBody.of(owners.put_credential(caller, name, token, box=services.secrets_box))


@router.delete("/credentials/{name}", status_code=HTTPStatus.NO_CONTENT)
def delete_credential(name: CredentialPath, owners: OwnersDep, caller: CallerDep) -> None:
    """Delete a credential. Jobs that name it and have not started will fail."""
    owners.delete_credential(caller, name)
