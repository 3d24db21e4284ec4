"""``GET /v1/models``."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from api.auth import Tenant
from api.facts import Facts
from api.ingress import Ingress
from api.intake import check_model
from api.state import get_ingress

router = APIRouter(tags=["openai"])


@router.get("/v1/models", summary="What is served")
async def models(_tenant: Tenant, ingress: Annotated[Ingress, Depends(get_ingress)]) -> dict[str, Any]:
    """The one model."""
    return {"object": "list", "data": [_card(ingress.context.facts)]}


@router.get("/v1/models/{name:path}", summary="One model")
async def model(name: str, _tenant: Tenant, ingress: Annotated[Ingress, Depends(get_ingress)]) -> dict[str, Any]:
    """Its card; 404 unless it is served here."""
    check_model(name, ingress.context.facts)
    return _card(ingress.context.facts)


def _card(facts: Facts) -> dict[str, Any]:
    return {
        "id": facts.served_name,
        "object": "model",
        "created": facts.created_s,
        "owned_by": "slos-serve",
        "root": facts.names[-1],
        "max_model_len": facts.max_model_len,
    }
