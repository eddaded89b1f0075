"""Carries out flows with one connection pool to one service, and waits."""

import time
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx2

from api.client.errors import ServiceError
from api.client.exchange import Exchange
from api.client.flows import Close, Effect, Emit, Flow, Open, Pause, ReadChunk, Run, Stream, send
from api.client.requests.request import Answer, Request

T = TypeVar("T")


class Connection:
    """`timeout` in seconds, for each request. Raises `InvalidAddress` if `url` is not an address."""

    def __init__(
        self, url: str, *, timeout: float, api_key: str | None = None, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.exchange = Exchange(url, api_key=api_key)
        with self.exchange.errors_of_address():
            self.http = httpx2.Client(
                base_url=self.exchange.url, timeout=timeout, transport=transport, trust_env=not self.exchange.is_local
            )

    def close(self) -> None:
        self.http.close()

    def send(self, request: Request[T]) -> T:
        """The body of the response. Raises `ServiceError`."""
        return self.run(send(request))

    def run(self, flow: Flow[T]) -> T:
        """The result of a flow."""
        run, performer = Run(flow), _Performer(self)
        try:
            while run.effect is not None:
                assert not isinstance(run.effect, Emit)
                performer.step(run, run.effect)
            return run.value
        finally:
            performer.close()

    def iterate(self, stream: Stream[T]) -> Iterator[T]:
        """The items of a flow, as they come."""
        run, performer = Run(stream), _Performer(self)
        try:
            while run.effect is not None:
                if isinstance(run.effect, Emit):
                    yield run.effect.value
                    run.answer(None)
                else:
                    performer.step(run, run.effect)
        finally:
            run.close()
            performer.close()


class _Performer:
    """Does what a flow asks for. Holds the response that is open."""

    def __init__(self, connection: Connection) -> None:
        self._http, self._exchange = connection.http, connection.exchange
        self._opened: httpx2.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def step(self, run: Run[Any], effect: Effect) -> None:
        try:
            with self._exchange.errors():
                result = self._perform(effect)
        except ServiceError as error:
            run.fail(error)
        else:
            run.answer(result)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
        self._opened = None

    def _perform(self, effect: Effect) -> object:
        match effect:
            case Request():
                return self._answer(effect)
            case Pause(seconds=seconds):
                time.sleep(seconds)
            case Open(request=request):
                return self._open(request)
            case ReadChunk():
                return next(self._chunks, None)
            case Close():
                self.close()
        return None

    def _answer(self, request: Request[T]) -> Answer[T]:
        response = self._http.request(**self._exchange.arguments(request))
        if self._exchange.forgets_key(response):
            response = self._http.request(**self._exchange.arguments(request))
        return self._exchange.answer(request, response)

    def _open(self, request: Request[None]) -> bool:
        self.close()
        opened = self._http.send(self._http.build_request(**self._exchange.arguments(request)), stream=True)
        if self._exchange.forgets_key(opened):
            opened.close()
            opened = self._http.send(self._http.build_request(**self._exchange.arguments(request)), stream=True)
        self._opened, self._chunks = opened, opened.iter_bytes()
        if not opened.is_success:
            opened.read()
        self._exchange.answer(request, opened)
        return opened.status_code != httpx2.codes.NO_CONTENT
