"""Facial expression transfer via fine-grained representations: the library under the course in ``notebooks/``.

Read in this order: :mod:`~expr_lib.facs` (the alphabet), :mod:`~expr_lib.model`, :mod:`~expr_lib.losses` and
:mod:`~expr_lib.step` (the paper), :mod:`~expr_lib.train`, :mod:`~expr_lib.measure.evaluate` (does it work?).
Importing the package imports nothing.
"""

from pathlib import Path

__version__ = "0.1.0"

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = WEIGHTS / "moved-64.safetensors"
"""The checkpoint that is used if none is named: the moving generator; its model card stands beside it."""
FIRST = WEIGHTS / "swap-64.safetensors"
"""The first generation, which draws faces anew and was trained unpaired: the paper as notebooks 02 to 07 derive it."""
