"""The faults: one function for each kind. It does it, and gives what ends it, if it lasts."""

from tests.chaos.faults import postgres, programs, redis, ways
from tests.chaos.faults.ground import FAULTS, NotPossible, cause
from tests.chaos.faults.programs import STEPS
from tests.chaos.faults.redis import NAMES

__all__ = ["FAULTS", "NAMES", "STEPS", "NotPossible", "cause", "postgres", "programs", "redis", "ways"]
