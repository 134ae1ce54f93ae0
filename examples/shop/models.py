"""The shop's tables."""

import uuid
from datetime import datetime

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables of the shop."""


class User(Base):
    """Someone who signed up."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    points: Mapped[int] = mapped_column(default=0)


class Order(Base):
    """Something that was bought."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    item: Mapped[str]
    cents: Mapped[int]
    country: Mapped[str]
    reserved: Mapped[bool] = mapped_column(default=False)


class TaxRate(Base):
    """What a country adds to a price, in percent. Without a row, no invoice can be written."""

    __tablename__ = "tax_rates"

    country: Mapped[str] = mapped_column(primary_key=True)
    percent: Mapped[int]


class Invoice(Base):
    """What a customer has to pay for an order."""

    __tablename__ = "invoices"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    cents: Mapped[int]


class Effect(Base):
    """One row for each thing a handler did, written in the handler's own transaction.

    No unique key, on purpose: were a handler's transaction applied twice, there would be two rows, and the demo's
    reconciliation would say so.
    """

    __tablename__ = "effects"

    id: Mapped[int] = mapped_column(primary_key=True)
    handler: Mapped[str]
    event_id: Mapped[uuid.UUID]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class Mail(Base):
    """What the mail provider sent. The key makes a second request for the same mail harmless; `requests` counts."""

    __tablename__ = "mails"

    idempotency_key: Mapped[str] = mapped_column(primary_key=True)
    recipient: Mapped[str]
    subject: Mapped[str]
    requests: Mapped[int] = mapped_column(default=1)
