"""How much each site matters: the model's outputs with one site changed, against the outputs with none.

    damage(site) = sum over the outputs of  |a - b|^2 / |a|^2,      a: before, b: with that site alone changed

The noise-to-signal ratios of independent small errors add up, so the damages of sites can be summed to rank plans; what a plan
really costs is measured on the whole plan (``trial.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from . import evaluate
from .contracts import Progress, Session, Setting, Site
from .dataset import Dataset
from .errors import GraphoptError
from .report.schema import SensitivityRow

SAMPLES = 32
"""Samples that sites are ranked on."""


@dataclass(frozen=True)
class Sensitivity:
    """What one site alone does to the outputs."""

    site: Site
    setting: Setting
    damage: float
    """Noise-to-signal ratio, summed over the outputs; infinite if the model could not be run with the site changed."""

    @property
    def sqnr_db(self) -> float:
        """The same in decibels: 10 log10(signal / noise)."""
        return -10 * math.log10(self.damage) if 0 < self.damage < math.inf else math.copysign(math.inf, 1 - self.damage)

    def row(self) -> SensitivityRow:
        """As a report holds it."""
        return SensitivityRow(
            site=self.site.name,
            op_type=self.site.op_type,
            setting=self.setting.label,
            damage=self.damage,
            sqnr_db=self.sqnr_db,
        )


def alone(
    settings: Sequence[tuple[Site, Setting]],
    open_with: Callable[[Site, Setting], Session],
    before: Session,
    data: Dataset,
    progress: Progress,
    samples: int = SAMPLES,
) -> list[Sensitivity]:
    """Measure each site alone, the most sensitive first.

    Args:
        settings: The sites, each with the setting that it is tried at.
        open_with: Opens the model with this one site changed.
        before: The model with no site changed.
        data: What both are run on.
        progress: Told each site.
        samples: How many samples of the data are used.
    """
    reference = evaluate.Reference(before, data.first(samples))
    found = []
    with progress.stage("measuring each site's sensitivity", len(settings)) as step:
        for site, setting in settings:
            damage = measured(partial(open_with, site, setting), reference)
            found.append(Sensitivity(site, setting, damage))
            step(1)
    return sorted(found, key=lambda one: -one.damage)


def measured(opened: Callable[[], Session], reference: evaluate.Reference) -> float:
    """The damage that a changed model shows on the samples of the reference; infinite if it cannot be run."""
    try:
        with opened() as session:
            return _damage(evaluate.compare(reference, session, reference.data).outputs)
    except GraphoptError:
        return math.inf


def between(before: Iterable[evaluate.Outputs], after: Iterable[evaluate.Outputs]) -> float:
    """The damage between the outputs of two models, batch by batch; infinite if the second cannot be run."""
    differences = evaluate.Differences()
    try:
        for expected, found in zip(before, after, strict=True):
            differences.update(expected, found)
    except GraphoptError:
        return math.inf
    return _damage(differences.result())


def _damage(outputs: Mapping[str, evaluate.Divergence]) -> float:
    return sum(10 ** (-output.sqnr_db / 10) for output in outputs.values())
