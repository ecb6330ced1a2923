"""Facial expression transfer via fine-grained representations: the library under the course in ``notebooks/``.

Read in this order: :mod:`~expr_lib.facs` (the alphabet), :mod:`~expr_lib.model`, :mod:`~expr_lib.losses` and the step
in :mod:`~expr_lib.train` (the paper), :mod:`~expr_lib.evaluate` (does it work?). Importing the package imports nothing.
"""

__version__ = "0.1.0"
