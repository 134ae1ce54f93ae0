"""Who the shop depends on, played by small programs: a card processor, a warehouse and a mail provider."""

import asyncio

from sqlalchemy.dialects.postgresql import insert

from shop.database import engine
from shop.models import Mail


class CardDeclinedError(Exception):
    """The card processor refused the payment."""


class WarehouseError(Exception):
    """The warehouse did not answer."""


async def charge(card: str, cents: int) -> None:
    """Take the money. Raises `CardDeclinedError` for the card `declined`."""
    if card == "declined":
        raise CardDeclinedError(f"the card was declined for {cents} cents")


async def reserve(order_id: int, attempt: int) -> None:
    """Set goods aside, in 20 ms. The warehouse is unreachable at the first attempt of every tenth order."""
    await asyncio.sleep(0.02)
    if order_id % 10 == 0 and attempt == 1:
        raise WarehouseError(f"the warehouse did not answer for order {order_id}")


async def send_mail(recipient: str, subject: str, idempotency_key: str) -> None:
    """Send a mail; the second request with a key sends nothing, as with real providers."""
    mail = insert(Mail).values(idempotency_key=idempotency_key, recipient=recipient, subject=subject, requests=1)
    again = mail.on_conflict_do_update(index_elements=[Mail.idempotency_key], set_={"requests": Mail.requests + 1})
    async with engine().begin() as provider:
        await provider.execute(again)
