"""Energy that the processor has used, from its own counters (RAPL) where Linux shows them.

The counters are of whole packages: what other processes use in the meantime is in the figure. Since 2020 most systems let only
root read them (CVE-2020-8694); virtual machines have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counters:
    """The packages' counters; none with a reason (``why``)."""

    packages: tuple[Path, ...]
    why: str = ""

    def read(self) -> Mapping[Path, int]:
        """What each counter shows now, in microjoules."""
        return {package: int((package / "energy_uj").read_text()) for package in self.packages}

    def joules(self, before: Mapping[Path, int], after: Mapping[Path, int]) -> float:
        """What was used between two readings; a counter that has begun again at 0 is taken to have done so once."""
        used = 0
        for package, start in before.items():
            difference = after[package] - start
            used += difference if difference >= 0 else difference + int((package / "max_energy_range_uj").read_text())
        return used / 1e6


def counters(folder: Path = FOLDER) -> Counters:
    """The counters that can be read here."""
    packages = sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1)
    if not packages:
        return Counters((), f"the system shows no energy counters ({folder})")
    try:
        found = Counters(tuple(packages))
        found.read()
    except PermissionError:
        return Counters((), f"the energy counters ({folder}) can only be read by root")
    except (OSError, ValueError) as error:
        return Counters((), f"the energy counters ({folder}) cannot be read: {error}")
    return found
