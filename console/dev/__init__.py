"""`outbox dev`: everything that a developer's handlers need, in one process' care and one log."""

from console.dev.folder import Folder, RunsAlreadyError
from console.dev.service import Development

__all__ = ["Development", "Folder", "RunsAlreadyError"]
