"""The relay as a service: waits to lead, then ticks, publishes, feeds and sleeps until it is stopped."""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import time
from collections.abc import Mapping
from types import FrameType

import psycopg
import redis
import structlog
import tenacity

from outbox.address import parse
from outbox.database import redacted, refused
from outbox.errors import LeadershipLostError
from outbox.health import Pulse
from outbox.redis import connect
from outbox.settings import Settings
from relay import eviction, lead, pacing, prefix, rebase
from relay.append import Appender
from relay.catch_up import CatchUp
from relay.feed import MainFeed
from relay.handlers import Handlers
from relay.hold import held
from relay.measures import Measures
from relay.pacing import Pace
from relay.patience import Patience, Stopping
from relay.sweep import Sweep
from relay.upkeep import Upkeep
from relay.wakeup import Doorbell, Sleep

log = structlog.get_logger()

REFRESH_EVERY = 1.0
"""Seconds after which the handlers are looked at again while there is no quiet moment for it."""

REDIS_TIMEOUT = 3.0
"""Seconds without an answer after which Redis counts as away. Twice that must fit into the leader's session timeout."""


class Relay:
    """Publishes the outbox of one schema. Any number may run; one leads.

    >>> relay = Relay(Settings(database_url="postgresql:///shop"))
    >>> relay.run()        # blocks until relay.stop() is called from another thread or a signal handler
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._schema = settings.schema_name
        self._url = settings.libpq_url(direct=True)
        self._doorbell = Doorbell()
        self._stopping = False
        self._leader = f"{socket.gethostname()}:{os.getpid()}"
        self.measures = Measures()
        self.pulse = Pulse()
        """Shows that its loop turns."""
        self.refused: str | None = None
        """What somebody has to mend in PostgreSQL before it can go on: the schema, or what its role may do."""

    @property
    def wakeups(self) -> Mapping[str, int]:
        """How often the leader's rest was ended, by what ended it."""
        return self._doorbell.wakeups

    def stop(self) -> None:
        """Ask `run` to return soon. Safe in a signal handler, from any thread, and more than once."""
        self._stopping = True
        self._doorbell.ring()

    def run(self) -> None:
        """Wait for the lead, lead, and start over when it is lost; until stopped.

        What somebody has to mend in PostgreSQL is waited for (`refused`). Raises `UnusableError` for a standby server,
        and `PrefixTakenError`.
        """
        log.info(
            "relay.started", database=redacted(self._url), redis=str(parse(self._settings.redis_url.get_secret_value()))
        )
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_be_mended),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2.0) + tenacity.wait_random(0, 0.1),
            sleep=self._wait,
            before_sleep=self._report,
            stop=lambda _: self._stopping,
            reraise=True,
        )
        try:
            while not self._stopping:
                retrying.copy()(self._serve)
        except Exception as error:
            if not (self._stopping and _may_be_mended(error)):
                raise
        finally:
            self._doorbell.close()
            log.info("relay.stopped")

    def _wait(self, seconds: float) -> None:
        self.pulse.beat()
        self._doorbell.wait(seconds)

    def _report(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        assert error is not None
        self.refused = refused(error)
        if self.refused is None:
            log.warning("relay.interrupted", error=f"{type(error).__name__}: {error}")
        elif state.attempt_number & (state.attempt_number - 1) == 0:
            # Ever more rarely: attempts 1, 2, 4, 8 and so on.
            log.error("server.refuses", error=self.refused, attempt=state.attempt_number)

    def _serve(self) -> None:
        """One connection's life: stand by, then lead. Returns when stopped or after having led."""
        with lead.connect(self._url, self._schema) as connection:
            standing_by = False
            while not lead.try_to_lead(connection, self._schema):
                self.refused = None
                if not standing_by:
                    log.info("relay.standby")
                    standing_by = True
                self._wait(lead.RETRY_AFTER)
                if self._stopping:
                    return
            self.measures.leading = True
            try:
                self._lead(connection)
            except Stopping:
                pass
            except (psycopg.OperationalError, LeadershipLostError) as error:
                # Having led, it starts over without the delay that failures to connect add up to.
                log.warning("relay.lead_lost", error=f"{type(error).__name__}: {error}")
                self._doorbell.wait(0.1)
            finally:
                self.measures.leading = self.measures.listening = False

    def _lead(self, connection: psycopg.Connection) -> None:
        log.info("relay.leading", leader=self._leader)
        connection.add_notify_handler(lambda _: self._doorbell.notified())

        def check_lead() -> None:
            lead.check(connection, self._schema)

        def go_on() -> None:
            self.pulse.beat()
            if self._stopping:
                raise Stopping

        def pause(seconds: float) -> None:
            self._doorbell.wait(seconds)
            go_on()
            check_lead()

        patience = Patience(pause)
        client, sweep_client = patience.insist(self._redis), patience.insist(self._redis)
        owner = self._owner(connection)
        restored = rebase.check(connection, self._schema)
        if restored is not None:
            self._take_prefix_over(connection, client, patience, restored.former, owner)
        patience.insist(lambda: prefix.claim(client, self._settings.prefix, owner))
        patience.insist(lambda: eviction.warn(client))
        if restored is not None:
            self.pulse.rest()
            rebase.perform(connection, self._schema, restored)
        direct = lead.announce(connection, self._schema, self._leader)
        handlers = Handlers(connection, self._schema)
        appender = Appender(client, patience, check_lead=check_lead)
        main = MainFeed(
            connection,
            client,
            schema=self._schema,
            prefix=self._settings.prefix,
            leader=self._leader,
            handlers=handlers,
            appender=appender,
            patience=patience,
            go_on=go_on,
            measures=self.measures,
        )
        catch_up = CatchUp(
            connection,
            client,
            schema=self._schema,
            prefix=self._settings.prefix,
            handlers=handlers,
            appender=appender,
            patience=patience,
            main=main,
            measures=self.measures,
        )
        sweep = Sweep(
            lambda: lead.connect(self._url, self._schema, role="sweep"),
            sweep_client,
            schema=self._schema,
            prefix=self._settings.prefix,
            owner=owner,
            published=lambda: main.published,
            ring=self._doorbell.ring,
            trimmed=main.trimmed.__setitem__,
        )
        upkeep = Upkeep(
            lambda: lead.connect(self._url, self._schema, role="upkeep"),
            schema=self._schema,
            keep=self._settings.retention,
        )
        sleep = Sleep(connection, self._schema)
        self.measures.listening = direct
        try:
            upkeep.start()
            self._rest(connection)
            main.resume()
            sweep.start()
            self._loop(connection, main, catch_up, handlers, sweep, sleep)
            sleep.wake()
        finally:
            upkeep.stop()
            sweep.stop()
            appender.close()
            client.close()
            sweep_client.close()

    def _loop(
        self,
        connection: psycopg.Connection,
        main: MainFeed,
        catch_up: CatchUp,
        handlers: Handlers,
        sweep: Sweep,
        sleep: Sleep,
    ) -> None:
        pace = Pace(at=time.monotonic())
        refreshed = renewed = 0.0
        while not self._stopping:
            self.pulse.beat()
            sleep.forget_ended()
            began = time.monotonic()
            events = main.advance()
            self.refused = None
            if sweep.refusal is not None:
                raise sweep.refusal
            while not sweep.losses.empty():
                loss = sweep.losses.get()
                if main.published.streams.get(loss.event_name) == loss.expected:
                    main.lose(loss.event_name, loss.expected, loss.actual)
            now = time.monotonic()
            age = now - refreshed
            if age > REFRESH_EVERY or (not events and (sleep.asleep or age > REFRESH_EVERY / 4)):
                if held(connection, self._schema):
                    sleep.wake()
                    self._rest(connection)
                    pace = Pace(at=time.monotonic())
                handlers.refresh(main.position)
                refreshed, age = time.monotonic(), -math.inf
            feed_wait = catch_up.step(events)
            now = time.monotonic()
            pace = pacing.observe(pace, now, events)
            if pace.listening:
                if not sleep.asleep or now - renewed >= pacing.SAFETY_POLL:
                    fell_asleep = not sleep.asleep
                    sleep.fall_asleep()
                    renewed = now
                    if fell_asleep:
                        continue
                rest = min(sleep.next_poll(), renewed + pacing.SAFETY_POLL - now)
            else:
                if sleep.asleep:
                    sleep.wake()
                rest = pacing.POLL_EVERY - (now - began)
            if feed_wait is not None:
                rest = min(rest, feed_wait)
            # Who registered while there were events is not kept waiting by a long sleep.
            rest = min(rest, REFRESH_EVERY - age)
            if rest > 0:
                self._doorbell.wait(rest, connection)

    def _rest(self, connection: psycopg.Connection) -> None:
        """Publish nothing while somebody holds the relay back. It goes on leading, or another would publish."""
        if not held(connection, self._schema):
            return
        log.warning("relay.paused", advice="`outbox status` says who did and why, `outbox resume relay` ends it")
        while held(connection, self._schema):
            self._wait(REFRESH_EVERY)
            if self._stopping:
                raise Stopping
        log.info("relay.resumed")

    def _redis(self) -> redis.Redis:
        return connect(self._settings.redis_url.get_secret_value(), timeout=REDIS_TIMEOUT)

    def _owner(self, connection: psycopg.Connection) -> str:
        row = connection.execute("SELECT system_identifier, current_database() FROM pg_control_system()").fetchone()
        assert row is not None
        return f"{row[0]}/{row[1]}/{self._schema}"

    def _take_prefix_over(
        self, connection: psycopg.Connection, client: redis.Redis, patience: Patience, server: str, owner: str
    ) -> None:
        rows = connection.execute(f"SELECT name FROM {self._schema}.stream".encode()).fetchall()
        last = connection.execute(f"SELECT coalesce(max(id), 0) FROM {self._schema}.tick".encode()).fetchone()
        assert last is not None
        patience.insist(
            lambda: prefix.take_over(
                client,
                self._settings.prefix,
                former=f"{server}/{owner.partition('/')[2]}",
                owner=owner,
                streams=[row[0] for row in rows],
                last_tick=last[0],
                pause=patience.pause,
            )
        )


def _may_be_mended(error: BaseException) -> bool:
    return isinstance(error, psycopg.OperationalError | LeadershipLostError) or refused(error) is not None


def run(settings: Settings) -> int:
    """Run a relay in this process until SIGTERM or SIGINT. Returns the exit status."""
    service = Relay(settings)

    def stop(number: int, frame: FrameType | None) -> None:
        service.stop()

    # What is loaded by now stays: no collection need look through it.
    gc.freeze()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if settings.metrics_port is None:
        service.run()
    else:
        from relay import monitoring

        with monitoring.serve(service, settings, settings.metrics_port):
            service.run()
    return 0
