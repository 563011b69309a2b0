"""``/metrics``, ``/healthz`` and ``/readyz`` inside a server that the program has already."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread
from prometheus_client import REGISTRY

from .health import Answer, Request, answer, json_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from prometheus_client import CollectorRegistry

    from .health import Health

    # As in asgiref and wsgiref.types, and not from there: a dictionary of anything, either way.
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

RENDERINGS = 2
"""How many scrapes are rendered at once. A collector that hangs must not use up the threads that
the rest of the program shares."""
MAX_SCRAPES = 100
"""How many wait for that. Behind a collector that hangs, more would only fill the memory."""


class HealthApp:
    """``/metrics``, ``/healthz`` and ``/readyz`` as an ASGI or WSGI app; 404 for all else.

    For a program with a server of its own, in place of a port of ours::

        app = Starlette(routes=[Mount("/internal", HealthApp().asgi)])   # or FastAPI
        app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/internal": HealthApp().wsgi})  # Flask

    :meth:`Worker.health_app` makes one for a worker that runs inside the program. It cannot answer
    while the program's event loop is stuck; a probe takes the silence for an answer.

    Args:
        registry: what ``/metrics`` shows; None, the default, is prometheus_client's own.
        health: what ``/healthz`` and ``/readyz`` show. None, the default, is for a program that
            only puts jobs: it is alive and ready whenever it answers.
    """

    def __init__(
        self, registry: CollectorRegistry | None = None, health: Health | None = None
    ) -> None:
        self._registry = REGISTRY if registry is None else registry
        self._health = health
        self._renderings = anyio.CapacityLimiter(RENDERINGS)
        self._scrapes = 0

    @property
    def asgi(self) -> Callable[[Message, Receive, Send], Awaitable[None]]:
        """The ASGI 3 app, to serve alone or to mount under a prefix."""

        # A function, because uvicorn takes a bound method for an app of ASGI 2.
        async def app(scope: Message, receive: Receive, send: Send) -> None:
            match scope["type"]:
                case "http":
                    await self._answer_http(scope, send)
                case "lifespan":
                    await _live(receive, send)
                case "websocket":
                    await send({"type": "websocket.close"})  # before it is accepted: a 403
                case other:
                    raise ValueError(f"streamqueue's health app does not speak {other!r}")

        return app

    def wsgi(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        """Be the WSGI app, to serve alone or to mount under a prefix."""
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        request = Request(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""), headers)
        content = self._answer(request)
        start_response(f"{content.status.value} {content.status.phrase}", content.headers)
        return [] if request.method == "HEAD" else [content.body]

    def _answer(self, request: Request) -> Answer:
        return answer(request, self._registry, self._health)

    async def _answer_http(self, scope: Message, send: Send) -> None:
        request = Request(scope["method"], _path(scope), _headers(scope["headers"]))
        if request.path == "/metrics":
            content = await self._scraped(request)
        else:
            content = self._answer(request)
        await send(
            {
                "type": "http.response.start",
                "status": content.status.value,
                "headers": [
                    (name.lower().encode("latin-1"), value.encode("latin-1"))
                    for name, value in content.headers
                ],
            }
        )
        body = b"" if request.method == "HEAD" else content.body
        await send({"type": "http.response.body", "body": body})

    async def _scraped(self, request: Request) -> Answer:
        if self._scrapes >= MAX_SCRAPES:
            return json_answer(
                HTTPStatus.SERVICE_UNAVAILABLE, {"error": "too many scrapes at once"}
            )
        self._scrapes += 1
        try:
            # Tens of milliseconds when there are many series.
            return await to_thread.run_sync(self._answer, request, limiter=self._renderings)
        finally:
            self._scrapes -= 1


def _path(scope: Message) -> str:
    """Return the path below the prefix under which the app is mounted.

    By the ASGI standard `path` has the prefix in it, `root_path`; some servers and frameworks leave
    it out.
    """
    path, prefix = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(prefix) if path.startswith(prefix + "/") else path


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in pairs:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


async def _live(receive: Receive, send: Send) -> None:
    """Say that there is nothing to start and nothing to stop."""
    while True:
        stage = (await receive())["type"]
        await send({"type": f"{stage}.complete"})
        if stage == "lifespan.shutdown":
            return
