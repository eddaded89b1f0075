"""Requests about keys, owners and credentials."""

from collections.abc import Mapping

from api.client.models import ApiKey, CreatedApiKey, Credential, OwnerSettings, Page
from api.client.requests.request import Request, path_of

_KEYS_PER_PAGE = 200


def create_key(request: Mapping[str, object]) -> Request[CreatedApiKey]:
    return Request.of(CreatedApiKey, "POST", "/keys", body=request)


def keys(*, owner: str | None, cursor: str | None) -> Request[Page[ApiKey]]:
    query = [("owner", owner), ("cursor", cursor), ("limit", str(_KEYS_PER_PAGE))]
    return Request.of(Page[ApiKey], "GET", "/keys", query=query)


def revoke_key(key_id: str) -> Request[ApiKey]:
    return Request.of(ApiKey, "DELETE", path_of("keys", key_id))


def rotate_key(key_id: str, *, overlap_seconds: int) -> Request[CreatedApiKey]:
    body = {"overlap_seconds": overlap_seconds}
    return Request.of(CreatedApiKey, "POST", path_of("keys", key_id, "rotate"), body=body)


def set_output_namespaces(owner: str, names: tuple[str, ...] | None) -> Request[OwnerSettings]:
    return Request.of(OwnerSettings, "PUT", path_of("owners", owner), body={"output_namespaces": names})


def set_credential(name: str, token: str) -> Request[Credential]:
    return Request.of(Credential, "PUT", path_of("credentials", name), body={"token": token})


def credentials() -> Request[Page[Credential]]:
    return Request.of(Page[Credential], "GET", "/credentials")


def delete_credential(name: str) -> Request[None]:
    return Request.of(None, "DELETE", path_of("credentials", name))
