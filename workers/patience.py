"""Waiting for a server that is away."""

from __future__ import annotations

from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential


def until_back(errors: tuple[type[BaseException], ...]) -> AsyncRetrying:
    """Try again for ever after these errors, at growing random intervals of at most 2 seconds."""
    return AsyncRetrying(wait=wait_random_exponential(multiplier=0.05, max=2), retry=retry_if_exception_type(errors))
