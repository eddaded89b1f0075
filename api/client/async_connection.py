"""Carries out flows with one connection pool to one service, and awaits: `connection.py` for asyncio."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import httpx2

from api.client.errors import ServiceError
from api.client.exchange import Exchange
from api.client.flows import Close, Effect, Emit, Flow, Open, Pause, ReadChunk, Run, Stream, send
from api.client.requests.request import Answer, Request

T = TypeVar("T")


class AsyncConnection:
    """`timeout` in seconds, for each request. Raises `InvalidAddress` if `url` is not an address."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        api_key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.exchange = Exchange(url, api_key=api_key)
        with self.exchange.errors_of_address():
            self.http = httpx2.AsyncClient(
                base_url=self.exchange.url, timeout=timeout, transport=transport, trust_env=not self.exchange.is_local
            )

    async def close(self) -> None:
        await self.http.aclose()

    async def send(self, request: Request[T]) -> T:
        """The body of the response. Raises `ServiceError`."""
        return await self.run(send(request))

    async def run(self, flow: Flow[T]) -> T:
        """The result of a flow."""
        run, performer = Run(flow), _Performer(self)
        try:
            while run.effect is not None:
                assert not isinstance(run.effect, Emit)
                await performer.step(run, run.effect)
            return run.value
        finally:
            await performer.close()

    async def iterate(self, stream: Stream[T]) -> AsyncIterator[T]:
        """The items of a flow, as they come."""
        run, performer = Run(stream), _Performer(self)
        try:
            while run.effect is not None:
                if isinstance(run.effect, Emit):
                    yield run.effect.value
                    run.answer(None)
                else:
                    await performer.step(run, run.effect)
        finally:
            run.close()
            await performer.close()


class _Performer:
    """Does what a flow asks for. Holds the response that is open."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._http, self._exchange = connection.http, connection.exchange
        self._opened: httpx2.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def step(self, run: Run[Any], effect: Effect) -> None:
        try:
            with self._exchange.errors():
                result = await self._perform(effect)
        except ServiceError as error:
            run.fail(error)
        else:
            run.answer(result)

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.aclose()
        self._opened = None

    async def _perform(self, effect: Effect) -> object:
        match effect:
            case Request():
                return await self._answer(effect)
            case Pause(seconds=seconds):
                await asyncio.sleep(seconds)
            case Open(request=request):
                return await self._open(request)
            case ReadChunk():
                return None if self._chunks is None else await anext(self._chunks, None)
            case Close():
                await self.close()
        return None

    async def _answer(self, request: Request[T]) -> Answer[T]:
        response = await self._http.request(**self._exchange.arguments(request))
        if self._exchange.forgets_key(response):
            response = await self._http.request(**self._exchange.arguments(request))
        return self._exchange.answer(request, response)

    async def _open(self, request: Request[None]) -> bool:
        await self.close()
        opened = await self._http.send(self._http.build_request(**self._exchange.arguments(request)), stream=True)
        if self._exchange.forgets_key(opened):
            await opened.aclose()
            opened = await self._http.send(self._http.build_request(**self._exchange.arguments(request)), stream=True)
        self._opened, self._chunks = opened, opened.aiter_bytes()
        if not opened.is_success:
            await opened.aread()
        self._exchange.answer(request, opened)
        return opened.status_code != httpx2.codes.NO_CONTENT
