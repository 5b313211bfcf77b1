"""Videos, data sets and augmentation. Import from the modules: this package itself loads nothing heavy.

`video` reads files and folders of frames, `face` finds the face, `sampling` chooses frames, `datasets` reads
the benchmarks, `transforms` augments and mixes, `synthetic` draws videos without any files.
"""
