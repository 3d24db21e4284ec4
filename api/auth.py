"""API keys: ``SLOS_API_KEYS`` holds ``key`` or ``tenant=key``, separated by commas."""

import hashlib
import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from api.problems import Problem, ProblemError
from common.settings import Settings

ANYONE = "anyone"
"""The tenant of everybody while authentication is off."""

_bearer = HTTPBearer(auto_error=False, description="one of SLOS_API_KEYS, if set")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="in place of a bearer token")


class Authenticator:
    """Keeps digests, so that comparing takes the same time for keys of any length."""

    def __init__(self, settings: Settings) -> None:
        text = settings.api_keys.get_secret_value() if settings.api_keys else ""
        self._tenants = dict(_parse(item.strip()) for item in text.split(",") if item.strip())
        if text.strip() and not self._tenants:
            raise ValueError("SLOS_API_KEYS is set but holds no key")

    @property
    def required(self) -> bool:
        """Whether a key is needed."""
        return bool(self._tenants)

    def tenant(self, key: str) -> str | None:
        """Whose key this is, None if nobody's."""
        digest = _digest(key)
        found = None
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


async def tenant_of(
    request: Request,
    bearer: Annotated[object, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> str:
    """Dependency: the caller's tenant; raises ProblemError 401."""
    authenticator = request.app.state.authenticator
    assert isinstance(authenticator, Authenticator)
    if not authenticator.required:
        return ANYONE
    key = getattr(bearer, "credentials", None) or header
    tenant = authenticator.tenant(key) if key else None
    if tenant is None:
        detail = "The API key is not known." if key else "An API key is needed."
        raise ProblemError(Problem(401, "unauthorized", detail, headers={"www-authenticate": "Bearer"}))
    return tenant


Tenant = Annotated[str, Depends(tenant_of)]


def _parse(item: str) -> tuple[bytes, str]:
    name, _, key = item.partition("=")
    if not key.strip("="):  # no tenant, or a key that is padded as base64 is
        return _digest(item), f"key-{_digest(item).hex()[:8]}"
    return _digest(key), name


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
