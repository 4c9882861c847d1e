"""What could go wrong: each audit looks at a subject (a rollout log, a data set, a model directory) and gives a `Verdict`."""

from __future__ import annotations

from tutelage.audits.verdict import Check, Curve, Effect, Verdict
from tutelage.errors import Warned

__all__ = ["Check", "Curve", "Effect", "Verdict", "Warned"]
