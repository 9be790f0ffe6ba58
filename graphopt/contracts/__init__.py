"""The blueprint: what a pass and a runtime must provide, and the values that travel between them and the core.

    Pass       rewrites a graph without changing what it computes
    LossyPass  offers Sites with settings from gentle to harsh; the core chooses, the pass applies
    Context    what a pass may use: sessions, data, target, random generator. It never opens files or prints
    Runtime    an engine that can run a model: opens a Session, profiles, says which nodes it takes

Passes and runtimes are found through the entry-point groups ``graphopt.passes`` and ``graphopt.runtimes``
(``registry.py``), so a third party adds one by installing a package that names a subclass there. CONTRIBUTING.md shows
both on a page each.
"""

from .passes import BasePass, Context, LossyPass, Pass, PassOptions
from .runtimes import (
    Availability,
    Example,
    Network,
    NodeInput,
    NodeTime,
    Packaged,
    Partition,
    Runtime,
    Session,
    SessionOptions,
)
from .values import (
    GOALS,
    Array,
    Border,
    Budget,
    Change,
    Feed,
    Figure,
    Goal,
    Grade,
    Need,
    Plan,
    Progress,
    Remains,
    Setting,
    Silent,
    Site,
    TensorSpec,
)

__all__ = [
    "GOALS",
    "Array",
    "Availability",
    "BasePass",
    "Border",
    "Budget",
    "Change",
    "Context",
    "Example",
    "Feed",
    "Figure",
    "Goal",
    "Grade",
    "LossyPass",
    "Need",
    "Network",
    "NodeInput",
    "NodeTime",
    "Packaged",
    "Partition",
    "Pass",
    "PassOptions",
    "Plan",
    "Progress",
    "Remains",
    "Runtime",
    "Session",
    "SessionOptions",
    "Setting",
    "Silent",
    "Site",
    "TensorSpec",
]
