"""Who gets the outputs of which request."""

import logging
from collections.abc import Callable
from typing import TypeAlias

from folovllm.outputs import RequestOutput
from folovllm.request import Request

logger = logging.getLogger(__name__)

Deliver: TypeAlias = Callable[[RequestOutput | None], object]
"""Takes the outputs of a request as they come, in the thread that steps; None when the request
was aborted and there is no further one. A list's `append`, or what puts into a queue.

It may add and abort requests, and must not step. If it raises, its request is aborted."""


class DeliveryError(Exception):
    """A `Deliver` raised what is the cause of this."""


class _Route:
    """Where the outputs of one unfinished request go; only one caller ends it."""

    __slots__ = ("_ends", "deliver", "request")

    def __init__(self, request: Request, deliver: Deliver | None) -> None:
        self.request = request
        self.deliver = deliver
        self._ends = [True]

    def is_open(self) -> bool:
        return bool(self._ends)

    def end(self) -> bool:
        """End the route; whether it was this call that did."""
        try:
            return self._ends.pop()
        except IndexError:
            return False


class Router:
    """The unfinished requests by their ids, and where their outputs go.

    Any thread may open and close routes, also from a finalizer or a signal handler: there is no
    lock. What must not be divided is one operation on a dictionary or a list, and a route is
    taken out by the one caller that ended it.
    """

    def __init__(self) -> None:
        """Know of no request."""
        self._routes: dict[str, _Route] = {}

    def __len__(self) -> int:
        """Return the number of unfinished requests."""
        return len(self._routes)

    def __contains__(self, request: Request) -> bool:
        """Whether this very request is unfinished: its id may be in use again."""
        route = self._routes.get(request.request_id)
        return route is not None and route.request is request and route.is_open()

    def open(self, request: Request, deliver: Deliver | None) -> None:
        """Let outputs of a request go to `deliver`; None for whoever calls `step`.

        Raises:
            ValueError: its id is that of an unfinished request.
        """
        route = _Route(request, deliver)
        if self._routes.setdefault(request.request_id, route) is not route:
            raise ValueError(
                f"request_id {request.request_id!r} is in use by an unfinished request"
            )

    def find(self, request_id: str) -> Request | None:
        """Return the unfinished request of a name; None if there is none."""
        route = self._routes.get(request_id)
        return route.request if route is not None and route.is_open() else None

    def close(self, request_id: str, request: Request | None = None) -> Request | None:
        """End a request without another output.

        Args:
            request_id: its name.
            request: this one alone: its name may be in use again.

        Returns:
            The request; None if there is none that is unfinished.
        """
        route = self._routes.get(request_id)
        if route is None or request not in (None, route.request) or not self._end(route):
            return None
        if route.deliver is not None:
            try:
                route.deliver(None)
            except Exception:  # a user's function; it is ended anyway
                logger.exception("request %r: its deliver callback raised", request_id)
        return route.request

    def close_all(self) -> list[Request]:
        """End all requests without another output; return them."""
        closed = [self.close(request_id) for request_id in list(self._routes)]
        return [request for request in closed if request is not None]

    def deliver(self, request: Request, output: RequestOutput) -> bool:
        """Hand an output to whoever asked; the last one ends the route.

        Returns:
            Whether it was handed on: what comes for an aborted request is dropped.

        Raises:
            DeliveryError: whoever asked raised something; the route is ended.
        """
        route = self._routes.get(request.request_id)
        if route is None or route.request is not request or not route.is_open():
            return False
        if output.finished and not self._end(route):
            return False
        if route.deliver is not None:
            try:
                route.deliver(output)
            except BaseException as error:
                self._end(route)
                raise DeliveryError from error
        return True

    def _end(self, route: _Route) -> bool:
        """End a route without a word; whether it was this call that did."""
        if not route.end():
            return False
        del self._routes[route.request.request_id]
        return True
