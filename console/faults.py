"""What went wrong, in one line with advice: for errors that are no bug of ours. Anything else keeps its traceback."""

from __future__ import annotations

from outbox.errors import ConfigurationError, OutboxError, PayloadError


def explained(error: BaseException) -> str | None:
    """The line to print instead of a traceback, or None. It never holds a password.

    >>> explained(ConfigurationError("no database"))
    'no database'
    """
    if isinstance(error, OutboxError):
        return str(error)
    # SQLAlchemy wraps the driver's error.
    cause = getattr(error, "orig", None) or error
    return _postgres(cause) or _redis(cause)


def from_input(error: BaseException) -> bool:
    """Whether what was given is wrong: arguments, settings, the application.

    >>> from_input(ConfigurationError("unknown log level"))
    True
    """
    import psycopg

    wrong = ConfigurationError | PayloadError | psycopg.DataError
    return isinstance(getattr(error, "orig", None) or error, wrong)


def _postgres(error: BaseException) -> str | None:
    import psycopg

    from outbox.database import refused

    if not isinstance(error, psycopg.Error):
        return None
    if (line := refused(error)) is not None:
        return line
    said = error.diag.message_primary or " ".join(str(error).split())
    if isinstance(error, psycopg.DataError):
        return f"PostgreSQL does not take a value that was given: {said}; correct it"
    if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
        return f"cannot reach PostgreSQL: {said}; check OUTBOX_DATABASE_URL and that the server runs"
    return f"PostgreSQL: {said}"


def _redis(error: BaseException) -> str | None:
    try:
        import redis
    except ModuleNotFoundError:
        return None
    if isinstance(error, redis.ConnectionError | redis.TimeoutError):
        return f"cannot reach Redis: {error}; check OUTBOX_REDIS_URL and that the server runs"
    if isinstance(error, redis.RedisError):
        return f"Redis: {error}"
    return None
