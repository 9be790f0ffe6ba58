"""``shapes.*``: what a deployment needs of a model's interface to the runtime, at the user's explicit wish.

fix      dynamic dimensions of the inputs get a size
opset    the operators are brought to a newer version; ``upgrades`` has a rule for each operator whose meaning changed

Both passes compute what the original computes, and need not be in a recipe: setting an option asks for them.
"""

from __future__ import annotations

from .fix import FixOptions, FixShapes
from .opset import OpsetOptions, UpgradeOpset

__all__ = ["FixOptions", "FixShapes", "OpsetOptions", "UpgradeOpset"]
