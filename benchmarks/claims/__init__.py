"""Published figures, each with its record, and a check that both still agree.

    python -m benchmarks.claims check                     # no GPU
    python -m benchmarks.claims evidence                  # writes docs/evidence.md
    python -m benchmarks.claims run NAME --out DIR        # on a GPU host

``check`` computes each figure again from its record, and looks for it where it is quoted. A figure
that differs fails. A claim whose code has changed since its run is printed as stale.
"""
