"""Facial expression transfer via fine-grained representations: the library under the course in ``notebooks/``.

Read in this order: :mod:`~expr_lib.facs` (the alphabet), :mod:`~expr_lib.model`, :mod:`~expr_lib.losses` and
:mod:`~expr_lib.step` (the paper), :mod:`~expr_lib.train`, :mod:`~expr_lib.measure.evaluate` (does it work?).
Importing the package imports nothing.
"""

from pathlib import Path

__version__ = "0.1.0"

WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = WEIGHTS / "swap-64.safetensors"
"""The checkpoint that comes with the project; its model card stands beside it."""
