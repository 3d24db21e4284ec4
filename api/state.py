"""What routes share, and how they get it."""

from fastapi import Request

from api.ingress import Ingress
from api.intake import Sender


async def get_ingress(request: Request) -> Ingress:
    """Dependency: the replica's ingress. Not a plain function, which FastAPI would call in a thread."""
    return ingress_of(request)


def ingress_of(request: Request) -> Ingress:
    """The replica's ingress."""
    ingress = request.app.state.ingress
    assert isinstance(ingress, Ingress)
    return ingress


def sender_of(request: Request, tenant: str, ingress: Ingress) -> Sender:
    """Who sends this request, now."""
    return Sender(tenant, ingress.clock(), ingress.relay.api, dict(request.headers))
