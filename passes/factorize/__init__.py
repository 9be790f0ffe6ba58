"""``factorize``: a weight of low rank as a product of smaller ones, chosen on data.

layers      which constants are weights of linear maps, and which pairs are factors already
vbmf        how many components of a weight are more than noise
moments     of what the layers read, on data
decompose   the best two factors for the inputs that a layer has
cp          factors that have no closed form, on data
forms       how a weight can be split, what each form costs
factors     the best ones for each form and rank
clock       what each form and rank saves when measured
write       the factors as operators
factorize   the pass
"""

from __future__ import annotations

from .factorize import Factorize, FactorizeOptions

__all__ = ["Factorize", "FactorizeOptions"]
