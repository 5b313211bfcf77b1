"""The measurements: cases, cost model, the check before the clock, clocks, plans, result files."""
