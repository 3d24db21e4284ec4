"""The FastAPI application: routes, the errors that they answer with, and what they share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api import batches, files, generate, health, requests
from api.auth import Authenticator
from api.context import Context
from api.ingress import Ingress
from api.middleware import PAGES, Drain, ServerSpan
from api.openai import chat, completions, models
from api.problems import (
    FieldError,
    Problem,
    ProblemError,
    field_path,
    for_openai,
    invalid,
    is_openai,
    of_status,
    unavailable,
)
from api.rehearsal import Rehearsal
from api.sse import ClientGone
from common.bus.interface import Bus
from common.errors import BusError, BusFull
from common.settings import Settings

CLIENT_CLOSED_REQUEST = 499


def create_app(settings: Settings, bus: Bus, context: Context) -> FastAPI:
    """The application; its lifespan runs the relay and rehearses. The bus stays its caller's to close."""
    ingress = Ingress(bus, context, settings)
    rehearsal = Rehearsal(ingress, settings.rehearsals)
    drain = Drain()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        ingress.start()
        rehearsal.start(partial(health.readiness, bus))
        yield
        await rehearsal.stop()
        await ingress.stop()

    app: FastAPI = FastAPIOffline(  # Swagger UI without a CDN
        title="slos-serve",
        summary="LLM serving that keeps its latency promises",
        lifespan=lifespan,
        static_url=PAGES,
    )
    app.state.settings = settings
    app.state.bus = bus
    app.state.ingress = ingress
    app.state.drain = drain
    app.state.rehearsal = rehearsal
    app.state.authenticator = Authenticator(settings)
    for router in (
        files.router,
        batches.router,
        generate.router,
        completions.router,
        chat.router,
        models.router,
        requests.router,
        health.router,
    ):
        app.include_router(router)
    _add_handlers(app)
    app.add_middleware(ServerSpan)
    app.add_middleware(drain.wrap)
    return app


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(ProblemError)
    async def problem(request: Request, error: ProblemError) -> Response:
        return _respond(request, error.problem)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        detail = error.detail if isinstance(error.detail, str) else None
        return _respond(request, of_status(error.status_code, detail, error.headers))

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> Response:
        errors = (FieldError(field_path(item["loc"][1:]), item["msg"]) for item in error.errors())
        return _respond(request, invalid(*errors).problem)

    @app.exception_handler(BusError)
    async def queue(request: Request, error: BusError) -> Response:
        detail = "The queue is out of memory." if isinstance(error, BusFull) else "The queue does not answer."
        return _respond(request, unavailable(detail).problem)

    @app.exception_handler(ClientGone)
    @app.exception_handler(ClientDisconnect)
    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)  # for logs: nobody reads it

    @app.exception_handler(Exception)
    async def unexpected(request: Request, _error: Exception) -> Response:
        return _respond(request, of_status(500, "This is a fault of the server; its log has more."))


def _respond(request: Request, problem: Problem) -> Response:
    path = request.url.path
    return for_openai(problem, path).response(is_openai(path))
