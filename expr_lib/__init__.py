"""Facial expression transfer via fine-grained representations: the library under the course in `notebooks/`.

Read in this order: `facs` (action units), `model`, `losses` and `step` (the paper), `train`, `measure.evaluate`
(measurement). Importing the package loads no other package.
"""

from pathlib import Path

__version__ = "0.1.0"

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = WEIGHTS / "moved-128.safetensors"
"""The default checkpoint, with the moving generator; its model card is in the same folder."""
FIRST = WEIGHTS / "swap-64.safetensors"
"""The checkpoint of the first generation, which draws faces anew and was trained unpaired, as in notebooks 02 to 07."""
