"""Waiting for a server that is away."""

from __future__ import annotations

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from workers.refusal import needs_a_person

ADVICE = (
    "somebody has to mend this; until then it is tried again: `outbox migrate --check` compares the schema, `outbox "
    "migrate --roles-sql` prints the grants"
)


def until_back(errors: tuple[type[BaseException], ...]) -> AsyncRetrying:
    """Try again for ever after these errors, at growing random intervals of at most 2 seconds."""
    return AsyncRetrying(
        wait=wait_random_exponential(multiplier=0.05, max=2),
        retry=retry_if_exception_type(errors),
        before_sleep=_report,
    )


def _report(state: RetryCallState) -> None:
    # Ever more rarely: attempts 1, 2, 4, 8 and so on.
    if state.attempt_number & (state.attempt_number - 1) == 0 and state.outcome is not None:
        error = state.outcome.exception()
        assert error is not None
        # The rest of what PostgreSQL says may show a row.
        said = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
        facts = {"error": f"{type(error).__name__}: {' '.join(said.split())}", "attempt": state.attempt_number}
        if needs_a_person(error):
            structlog.get_logger().error("server.refuses", **facts, advice=ADVICE)
        else:
            structlog.get_logger().warning("server.away", **facts)
