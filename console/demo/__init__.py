"""`outbox demo`: the main job on real servers, with kills in the middle and a reconciliation at the end."""

from console.demo.performance import run

__all__ = ["run"]
