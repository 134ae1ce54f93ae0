"""Loaded by the process that programs are forked from, and by nobody else: it ends with the one that started it."""

from __future__ import annotations

from tests.chaos.programs import die_with_parent

die_with_parent()
