"""What happens after a request: `outbox worker shop.tasks:app`.

A handler that asks for a `session` is transactional: what it writes, the events it adds and the fact that it is done
are committed together, once. One that does not may run again after a crash, so it hands the event's id to the other
side as idempotency key.
"""

from sqlalchemy.ext.asyncio import AsyncSession

import outbox
from outbox import Event
from shop import partners
from shop.models import Effect, Invoice, Order, TaxRate, User
from workers import App, Backoff, Context

app = App()


@app.handler("signed_up")
async def send_welcome(user_id: int, email: str, event: Event, context: Context) -> None:
    """Greet a new customer."""
    context.logger.info("welcome", user_id=user_id)
    await partners.send_mail(email, "Welcome", idempotency_key=str(event.id))


@app.handler("signed_up")
async def award_points(user_id: int, session: AsyncSession, event: Event) -> None:
    """Give a new customer a hundred points: the second handler of this event, with progress of its own."""
    user = await session.get_one(User, user_id, with_for_update=True)
    user.points += 100
    session.add(Effect(handler="award_points", event_id=event.id))


@app.handler("order_placed", max_attempts=4, backoff=Backoff(initial=0.2, jitter=0.1))
async def write_invoice(order_id: int, session: AsyncSession, event: Event) -> None:
    """Write the invoice of an order, and say so: the next event is committed together with it."""
    order = await session.get_one(Order, order_id)
    rate = await session.get(TaxRate, order.country)
    if rate is None:
        raise LookupError(f"no tax rate for {order.country}")
    user = await session.get_one(User, order.user_id)
    invoice = Invoice(order_id=order.id, cents=order.cents * (100 + rate.percent) // 100)
    session.add_all([invoice, Effect(handler="write_invoice", event_id=event.id)])
    await session.flush()
    outbox.add(session, "invoice_written", invoice_id=invoice.id, email=user.email)


@app.handler("order_placed")
async def reserve_goods(order_id: int, session: AsyncSession, event: Event, context: Context) -> None:
    """Set the goods aside. The warehouse is not always there: the worker tries again."""
    await partners.reserve(order_id, context.attempt)
    order = await session.get_one(Order, order_id)
    order.reserved = True
    session.add(Effect(handler="reserve_goods", event_id=event.id))


@app.handler("invoice_written")
async def send_invoice(invoice_id: int, email: str, event: Event) -> None:
    """Mail the invoice."""
    await partners.send_mail(email, f"Your invoice {invoice_id}", idempotency_key=str(event.id))
