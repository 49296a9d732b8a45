"""The web application: its routes, and how answers and errors leave it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

import dlf
from dlf.server.answers import Answer
from dlf.server.chat import chat
from dlf.server.completions import complete, prompts_of
from dlf.server.errors import ApiError, error_body, from_engine, from_validation, timed_out
from dlf.server.guard import Guard, log_failure
from dlf.server.messages import chat_options, messages_of
from dlf.server.metrics import Metrics
from dlf.server.playground import HEADERS, PAGE
from dlf.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, GenerationRequest, TokenizeRequest
from dlf.server.responses import Events, Json
from dlf.server.service import Served, Service
from dlf.server.settings import ServerSettings
from dlf.support.option_values import shown
from dlf.text.chat_options import ChatOptions
from dlf.text.layout import CHAT, Layout, as_messages
from dlf.tool_calls import as_functions

__all__ = ["make_app"]

T = TypeVar("T")


def make_app(service: Service, settings: ServerSettings | None = None) -> FastAPI:
    """Make the application that serves some engines; it closes them when it ends.

    Parameters
    ----------
    service
        The engines, by name.
    settings
        Limits and keys.
    """
    settings = settings or ServerSettings()
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.draining = True
        await service.close()

    app = FastAPI(title="dlf", version=dlf.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, settings=settings)

    @app.exception_handler(ApiError)
    async def _(_: Request, error: ApiError) -> Json:
        return Json(error_body(error), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> Json:
        found = from_validation(error.errors())
        return Json(error_body(found), found.status)

    @app.exception_handler(HTTPException)
    async def _(_: Request, error: HTTPException) -> Json:
        found = ApiError(error.status_code, str(error.detail))
        return Json(error_body(found), found.status, error.headers)

    async def answer(
        request: Request, body: GenerationRequest, kind: str, endpoint: str, count: int, parts: Callable[..., Any]
    ) -> Response:
        """Run a request: as a stream of events, or to its end unless the client leaves."""
        served, experts = service.find(body.model)
        with metrics.request(body.model, endpoint):
            return await run(request, body, Answer(kind, body.model, metrics), served, experts, count, parts)

    async def run(
        request: Request,
        body: GenerationRequest,
        frame: Answer,
        served: Served,
        experts: list[str] | None,
        count: int,
        parts: Callable[..., Any],
    ) -> Response:
        if count > settings.max_choices:
            raise ApiError(400, f"{count} choices are asked for; at most {settings.max_choices} are made", "n")
        source = _counted(service, served, count, settings, parts(body, served, experts, settings, frame))
        deadline = asyncio.get_running_loop().time() + settings.timeout
        try:
            async with asyncio.timeout_at(deadline):
                if body.stream:
                    first = await _until_gone(request, anext(source, None))
                    usage = body.stream_options is not None and body.stream_options.include_usage
                    return Events(first, source, frame, usage, deadline, settings.timeout)
                found = await _until_gone(request, _all(source))
        except TimeoutError:
            raise timed_out(settings.timeout) from None
        return Json(frame.whole(found))

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        count = len(prompts_of(body)) * (body.n or 1)
        if not count:
            raise ApiError(400, "prompt is an empty list; give at least one prompt", "prompt")
        return await answer(request, body, "text_completion", "completions", count, complete)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        return await answer(request, body, kind, "chat", body.n or 1, chat)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name, one) for name, one in service.names().items()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return _model(name, service.find(name)[0])

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        engine = service.find(body.model)[0].engine
        tokenizer = engine.tokenizer
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", "prompt")
        text, special = body.prompt or "", body.add_special_tokens

        def encode() -> list[int]:
            written = text
            if body.messages is not None:
                as_functions(body.tools or ())  # raises
                chat = ChatOptions(**chat_options(body))
                [messages], _ = as_messages(messages_of(body.messages), chat)
                written = Layout(CHAT, chat=chat).text(messages, tokenizer)
            return tokenizer.encode(written, add_special_tokens=special and body.messages is None)

        tokens = await _call(encode)
        return {"tokens": tokens, "count": len(tokens), "max_model_len": engine.max_context}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        tokenizer = service.find(body.model)[0].engine.tokenizer
        for token in body.tokens:
            if not 0 <= token < tokenizer.vocab_size:
                raise ApiError(400, f"there is no token {shown(token)}", "tokens")
        return {"prompt": await _call(lambda: tokenizer.decode(body.tokens, skip_special_tokens=False))}

    @app.get("/health")
    @app.get("/health/live")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        if service.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics_text() -> Response:
        return Response(await metrics.text(service.served), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return Response(PAGE, media_type="text/html", headers=HEADERS)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": dlf.__version__}

    return app


def _model(name: str, one: Served) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": one.created,
        "owned_by": "dlf",
        "max_model_len": one.engine.max_context,
        "experts": one.engine.experts,
    }


async def _call(work: Callable[[], T]) -> T:
    """Run work of a tokenizer beside the event loop; its errors are the client's."""
    try:
        return await asyncio.to_thread(work)
    except (ValueError, TypeError, OverflowError) as error:
        raise from_engine(error) from error


async def _counted(
    service: Service,
    served: Served,
    count: int,
    settings: ServerSettings,
    parts: AsyncGenerator[dict[str, Any]],
) -> AsyncGenerator[dict[str, Any]]:
    """The parts of an answer, which takes places while it runs; errors are the client's."""
    with service.places(served, count, settings.max_queue):
        try:
            async with aclosing(parts):
                async for part in parts:
                    yield part
        except Exception as error:
            found = from_engine(error)
            if found.status >= 500:
                log_failure(error)
            raise found from error


async def _all(source: AsyncGenerator[dict[str, Any]]) -> list[dict[str, Any]]:
    async with aclosing(source):
        return [part async for part in source]


async def _until_gone(request: Request, work: Awaitable[T]) -> T:
    """Await work, and cancel it when the client leaves."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client left")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
