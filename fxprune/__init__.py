"""fxprune: a torch.fx pass from a trained network and a latency budget to a slim, verified one."""

__version__ = "0.1.0"

from fxprune.analyze import analyze
from fxprune.backends import Settings
from fxprune.budget import Budget
from fxprune.deploy import benchmark, compile
from fxprune.errors import (
    BackendError,
    BackendUnavailable,
    BudgetError,
    CacheError,
    CaptureError,
    FxpruneError,
    InputError,
    MeasurementError,
    PlanMismatch,
    VerificationError,
)
from fxprune.finalize import finalize
from fxprune.optimize import apply, optimize
from fxprune.pareto import pareto
from fxprune.passes.recalibrate import recalibrate
from fxprune.passes.recover import finetune
from fxprune.plan import Plan
from fxprune.probe import Probe
from fxprune.report import report
from fxprune.storage import load, save

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "Budget",
    "BudgetError",
    "CacheError",
    "CaptureError",
    "FxpruneError",
    "InputError",
    "MeasurementError",
    "Plan",
    "PlanMismatch",
    "Probe",
    "Settings",
    "VerificationError",
    "analyze",
    "apply",
    "benchmark",
    "compile",
    "finalize",
    "finetune",
    "load",
    "optimize",
    "pareto",
    "recalibrate",
    "report",
    "save",
]
