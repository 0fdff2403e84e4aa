"""What can go wrong with a request → a status and `{"version": 1, "error": {"code", "message", "remedy"}}`.

`answered` is the outermost middleware: nothing leaves the application in another shape. Codes are stable; messages are for
people. A failure of ours (500) says no more than that, and is in the log.
"""

import logging
from collections.abc import Awaitable, Callable

import psycopg
from aiohttp import web
from pydantic import BaseModel, Field

from connectors.kafka.log import LogUnavailable
from connectors.runtime.errors import BEHIND, one_line
from schemas.errors import OperatorError

VERSION = 1

logger = logging.getLogger("api")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ErrorBody(BaseModel):
    """What went wrong, and what to do about it."""

    code: str = Field(description="stable, for programs")
    message: str = Field(description="for people")
    remedy: str = Field(description="what to do about it")


class ErrorAnswer(BaseModel):
    """Every answer with a status of 400 and above."""

    version: int = Field(default=VERSION, description="version of this API")
    error: ErrorBody


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(code=code, message=message, remedy=remedy)


class Invalid(ApiError):
    """The request does not say what the route takes."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(status, "invalid", message, "see /api/openapi.json for what this route takes")


class NotFound(ApiError):
    """What the path names is not there."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(404, "not_found", message, remedy)


class Conflict(ApiError):
    """It is there, and in a state in which this cannot be done."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(409, "conflict", message, remedy)


class Busy(ApiError):
    """Too many requests wait already."""

    def __init__(self) -> None:
        super().__init__(503, "busy", "too many requests wait already", "ask again in a moment")


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into an answer."""
    try:
        return await handler(request)
    except ApiError as err:
        return as_answer(err)
    except web.HTTPException as err:
        if err.status < 400:
            raise
        return as_answer(_http(err), dict(err.headers))
    except Exception as err:
        known = of(err)
        if known.status == 500:
            logger.exception("a request failed", extra={"method": request.method, "path": request.path})
        return as_answer(known)


def of(error: Exception) -> ApiError:
    """The answer to an exception of the parts below."""
    if isinstance(error, psycopg.errors.QueryCanceled):
        return ApiError(503, "too_slow", "the database took too long", "ask for less at once, or again later")
    if isinstance(error, psycopg.OperationalError):
        return ApiError(
            503, "database_unavailable", "the database does not answer", "see SLUICE_DATABASE and PostgreSQL"
        )
    if isinstance(error, BEHIND):
        return ApiError(503, "not_migrated", "the database is of another release", "run `sluice migrate`")
    if isinstance(error, psycopg.DataError):
        return Invalid("a value that the database does not take")
    if isinstance(error, LogUnavailable):
        return ApiError(503, "log_unavailable", one_line(error), "see SLUICE_BOOTSTRAP and the brokers")
    if isinstance(error, OperatorError):
        return Conflict(one_line(error), "see the message")
    return ApiError(500, "internal", "something failed here", "the log of the control process says what")


def as_answer(error: ApiError, headers: dict[str, str] | None = None) -> web.Response:
    """The error as it is sent."""
    kept = {name: value for name, value in (headers or {}).items() if name.lower() in ("allow", "www-authenticate")}
    if error.status == 401:
        kept["WWW-Authenticate"] = "Bearer"
    text = ErrorAnswer(error=error.body).model_dump_json()
    return web.Response(status=error.status, text=text, content_type="application/json", headers=kept)


def _http(error: web.HTTPException) -> ApiError:
    codes = {404: "no_such_route", 405: "method_not_allowed", 413: "too_large"}
    message = {404: "there is nothing here", 405: "this route does not take this method", 413: "the body is too large"}
    return ApiError(
        error.status,
        codes.get(error.status, "invalid"),
        message.get(error.status, error.reason),
        "see /api/openapi.json for the routes",
    )
