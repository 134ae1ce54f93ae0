"""What is wrong with an installation: one small check for each thing that can be, with evidence and remedy."""

from console.doctor.checks import CHECKS
from console.doctor.examination import examine
from console.doctor.finding import Check, Finding, Severity, Verdict

__all__ = ["CHECKS", "Check", "Finding", "Severity", "Verdict", "examine"]
