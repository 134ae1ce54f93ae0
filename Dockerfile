# One image for the migration, the example's API, the relay and the workers; compose.yaml gives each its command.
FROM python:3.13-slim

RUN useradd --create-home outbox
WORKDIR /srv
COPY pyproject.toml README.md LICENSE ./
COPY outbox outbox
COPY relay relay
COPY workers workers
COPY console console
COPY outbox_testing outbox_testing
# Part of the package too: the demo plays with the example shop.
COPY examples examples
RUN pip install --no-cache-dir '.[cli,fastapi]' 'uvicorn>=0.30' && rm -rf outbox relay workers console outbox_testing

WORKDIR /srv/examples
USER outbox
ENV PYTHONUNBUFFERED=1
CMD ["outbox", "--help"]
