"""A small shop: a FastAPI service whose e-mails, invoices and reservations happen through a transactional outbox."""
