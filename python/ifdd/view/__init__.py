"""Results to look at: annotated videos (`annotate`), a camera (`live`) and a web page (`app`).

`overlay` draws on frames, `film` writes videos, `sources` reads cameras, `screens` shows pictures.
"""
