"""Settings of the regulariser of pre-training: SIGReg on pooled features (LeJEPA, arXiv 2511.08544)."""

from dataclasses import dataclass

from training.settings.checks import check, check_at_least, check_finite
from training.settings.fields import recipe

POOLED_CELLS = ("visible", "all")
OFF = ("sigreg_weight", (0,))


@dataclass(kw_only=True)
class RegularizerSettings:
    """Regulariser of pooled features."""

    sigreg_weight: float = recipe(
        0.0, "weight of SIGReg, which keeps the pooled features near an isotropic Gaussian; 0: off"
    )
    invariance_weight: float = recipe(
        1.0, "weight of the squared distance between the pooled features of the views of an image", unused_with=OFF
    )
    sigreg_directions: int = recipe(256, "random directions on which SIGReg looks at the features", unused_with=OFF)
    sigreg_cells: str = recipe(
        "visible", "cells whose features are pooled: visible, or all, which encodes whole images too", unused_with=OFF
    )

    def __post_init__(self) -> None:
        check_finite(self)
        check_at_least(self, ("sigreg_weight", "invariance_weight"), 0)
        check_at_least(self, ("sigreg_directions",), 1)
        check("sigreg_cells", self.sigreg_cells, self.sigreg_cells in POOLED_CELLS, "be visible or all")

    @property
    def is_on(self) -> bool:
        """Whether there is a regulariser."""
        return self.sigreg_weight > 0
