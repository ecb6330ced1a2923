"""Real data in, the one data-set form out: one small file for each family of data sets, all read through ``source.py``.

Each has one function, ``faces(tree, report)``, that yields a :class:`~expr_lib.importers.source.Face` for every
labelled image; ``write.py`` does the rest. Layouts, licences and where to apply: ``data/real_data.md``.
"""
