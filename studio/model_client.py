"""Calls the model's replicas from the process that serves HTTP."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from prometheus_client.core import Metric
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from policy.errors import in_one_line
from rewards import controller
from studio.records import Event, GeneratedImage, ImageTask, RequestError

MODEL_APP = "model"
_ANSWER_S = 5.0  # how long a replica may take to report its state


class Model(Protocol):
    """Draws images, in this process or another. Its methods that draw raise RequestError, and stop if
    their caller goes."""

    async def generate(self, tasks: Sequence[ImageTask]) -> list[GeneratedImage]: ...

    def stream(
        self, tasks: Sequence[ImageTask], partial_images: int
    ) -> AsyncGenerator[list[Event], None]: ...

    async def metrics(self) -> dict[str, list[Metric]]:
        """What each replica counted, by its name."""
        ...

    async def running(self) -> bool:
        """Whether a replica can draw now."""
        ...


class ModelClient:
    """The replicas of this cluster's Ray Serve; the handle is looked up when it is first needed."""

    def __init__(self) -> None:
        self._found: DeploymentHandle | None = None

    async def generate(self, tasks: Sequence[ImageTask]) -> list[GeneratedImage]:
        handle = await self._handle()
        try:
            reply = handle.generate.remote(tasks)
            try:
                return await reply
            except asyncio.CancelledError:
                reply.cancel()
                raise
        except (RayError, RayServeException) as error:
            raise _request_error(error) from error

    async def stream(
        self, tasks: Sequence[ImageTask], partial_images: int
    ) -> AsyncGenerator[list[Event], None]:
        handle = await self._handle()
        try:
            reply = handle.options(stream=True).stream.remote(tasks, partial_images)
            try:
                async for events in reply:
                    yield events
            finally:
                reply.cancel()
        except (RayError, RayServeException) as error:
            raise _request_error(error) from error

    async def metrics(self) -> dict[str, list[Metric]]:
        """The replicas' metrics, if all of them answer."""

        def ask() -> dict[str, list[Metric]]:
            try:
                replies = serve.get_app_handle(MODEL_APP).broadcast("named_metrics")
                return dict(replies.results(timeout_s=_ANSWER_S))
            except (RayError, RayServeException, TimeoutError):
                return {}

        return await asyncio.to_thread(ask)

    async def running(self) -> bool:
        def look() -> bool:
            apps = controller.status().applications
            return MODEL_APP in apps and apps[MODEL_APP].status == ApplicationStatus.RUNNING

        return await asyncio.to_thread(look)

    async def _handle(self) -> DeploymentHandle:
        if self._found is None:
            self._found = await asyncio.to_thread(serve.get_app_handle, MODEL_APP)
        return self._found


def _request_error(error: Exception) -> RequestError:
    """The error that the replica raised, or one that says that it gave no answer."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, RequestError):
        return cause
    return RequestError(f"the model gave no answer: {in_one_line(error)}", status=503)
