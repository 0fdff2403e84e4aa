"""Errors of a request → a status and `{"version": 1, "error": {"code", "message", "remedy"}}`.

`answer` is FastAPI's exception handler for everything in HANDLED. Codes are stable, messages may change. An unexpected
error (500) carries no detail; its traceback is in the log.
"""

import logging

import psycopg
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from connectors.kafka.log import LogUnavailable
from connectors.postgres.pooled_calls import TooManyCalls
from connectors.runtime.errors import BEHIND, one_line
from schemas.errors import OperatorError
from schemas.patterns import first_mistake

VERSION = 1
HTTP_ERRORS = {
    404: ("no_such_route", "there is no such route"),
    405: ("method_not_allowed", "this route does not support this method"),
    413: ("too_large", "the body is too large"),
}

logger = logging.getLogger("api")


class ErrorBody(BaseModel):
    """What went wrong, and what to do about it."""

    code: str = Field(description="stable, for programs")
    message: str = Field(description="for the operator")
    remedy: str = Field(description="what to do about it")


class ErrorAnswer(BaseModel):
    """Every answer with a status of 400 and above."""

    version: int = Field(default=VERSION, description="version of this API")
    error: ErrorBody


class ApiError(Exception):
    """An error with its answer."""

    def __init__(self, status: int, code: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(code=code, message=message, remedy=remedy)

    def response(self, headers: dict[str, str] | None = None) -> JSONResponse:
        """The answer."""
        more = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        return JSONResponse(ErrorAnswer(error=self.body).model_dump(), self.status, {**(headers or {}), **more})


class Invalid(ApiError):
    """The request is invalid."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(status, "invalid", message, "see /api/openapi.json for the parameters of this route")


class NotFound(ApiError):
    """The path names something that does not exist."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(404, "not_found", message, remedy)


class Conflict(ApiError):
    """Not possible in the current state of the resource."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(409, "conflict", message, remedy)


HANDLED = (
    ApiError,
    HTTPException,
    RequestValidationError,
    TooManyCalls,
    psycopg.Error,
    LogUnavailable,
    OperatorError,
    Exception,
)


async def answer(request: Request, error: Exception) -> JSONResponse:
    """The answer to an exception of a handler, of routing or of validation."""
    if isinstance(error, HTTPException):
        code, message = HTTP_ERRORS.get(error.status_code, ("invalid", error.detail))
        found = ApiError(error.status_code, code, message, "see /api/openapi.json for the routes")
        return found.response(dict(error.headers or {}))
    found = error if isinstance(error, ApiError) else _known(error)
    if found.status == 500:
        logger.error("a request failed", exc_info=error, extra={"method": request.method, "path": request.url.path})
    return found.response()


def _known(error: Exception) -> ApiError:
    if isinstance(error, RequestValidationError):
        where, what = first_mistake(error.errors())
        path = ".".join(where[1:])[:200]  # without "query", "path" or "body"
        return Invalid(f"{path}: {what}" if path else what)
    if isinstance(error, TooManyCalls):
        return ApiError(503, "busy", "too many requests are queued", "retry in a moment")
    if isinstance(error, psycopg.errors.QueryCanceled):
        return ApiError(503, "too_slow", "the database took too long", "request less at once, or retry later")
    if isinstance(error, psycopg.OperationalError):
        return ApiError(
            503, "database_unavailable", "the database does not answer", "see SLUICE_DATABASE and PostgreSQL"
        )
    if isinstance(error, BEHIND):
        return ApiError(503, "not_migrated", "the database is of another release", "run `sluice migrate`")
    if isinstance(error, psycopg.DataError):
        return Invalid("a value that the database rejects")
    if isinstance(error, LogUnavailable):
        return ApiError(503, "log_unavailable", one_line(error), "see SLUICE_KAFKA_BOOTSTRAP and the brokers")
    if isinstance(error, OperatorError):
        return Conflict(one_line(error), "see the message")
    return ApiError(500, "internal", "internal error", "see the log of the control process")
