"""Importers of real data sets: one small file for each family of data sets, all read through `source.py`.

Each has one function, `labelled_images(tree, report)`, that yields a `source.LabelledImage` for every image with a
label; `write.py` does the rest. For layouts, licences and applications see `data/real_data.md`.
"""
