"""The shop's API: `uvicorn shop.api:app`. Each endpoint adds its event to the transaction of its own data."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import Depends, FastAPI, Header, HTTPException, status
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

import outbox
from shop import partners
from shop.database import SessionDep, engine
from shop.models import Base, Order, TaxRate, User


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the shop's tables. A real service would leave that to Alembic."""
    async with engine().begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        rates = [{"country": "DE", "percent": 19}, {"country": "FR", "percent": 20}]
        await connection.execute(insert(TaxRate).values(rates).on_conflict_do_nothing())
    yield
    await engine().dispose()


async def correlate(x_request_id: Annotated[str | None, Header()] = None) -> None:
    """Let the events of a request carry its id, which the logs of their handlers show then."""
    outbox.correlation_id.set(x_request_id or str(uuid4()))


app = FastAPI(title="Shop", lifespan=lifespan, dependencies=[Depends(correlate)])


class SignUp(BaseModel):
    """The body of POST /signup."""

    email: str


class PlaceOrder(BaseModel):
    """The body of POST /orders."""

    user_id: int
    item: str
    cents: int
    country: str
    card: str


class Accepted(BaseModel):
    """What was stored: the row, and the event that was stored with it."""

    id: int
    event: UUID


@app.post("/signup", status_code=status.HTTP_201_CREATED)
async def sign_up(body: SignUp, session: SessionDep) -> Accepted:
    """Register a customer; the welcome mail and the points follow."""
    user = User(email=body.email)
    session.add(user)
    try:
        await session.flush()
    except IntegrityError:
        raise HTTPException(status.HTTP_409_CONFLICT, "this address has signed up already") from None
    event = outbox.add(session, "signed_up", user_id=user.id, email=user.email)
    await session.commit()
    return Accepted(id=user.id, event=event.id)


@app.post("/orders", status_code=status.HTTP_201_CREATED)
async def place_order(body: PlaceOrder, session: SessionDep) -> Accepted:
    """Take an order; the invoice and the reservation follow. A declined card rolls all of it back."""
    order = Order(**body.model_dump(exclude={"card"}))
    session.add(order)
    await session.flush()
    event = outbox.add(session, "order_placed", _key=f"user:{body.user_id}", order_id=order.id)
    # What the database could object to comes before the money.
    await session.flush()
    try:
        await partners.charge(body.card, body.cents)
    except partners.CardDeclinedError as error:
        refused = Accepted(id=order.id, event=event.id).model_dump(mode="json")
        raise HTTPException(status.HTTP_402_PAYMENT_REQUIRED, {"reason": str(error), **refused}) from None
    await session.commit()
    return Accepted(id=order.id, event=event.id)


@app.get("/events/{id}")
async def where_is_it(id: UUID, session: SessionDep) -> dict[str, Any]:
    """What happened to an event so far, and what it waits for."""
    story = await outbox.status(session, id)
    if story.state == "unknown":
        raise HTTPException(status.HTTP_404_NOT_FOUND, story.waits[0].text)
    return story.as_dict()


@app.get("/health")
async def health(session: SessionDep) -> dict[str, str]:
    """Whether the API and its database answer."""
    await session.execute(select(1))
    return {"status": "ok"}
