"""What is measured and how: cases, cost model, the gate before the clock, clocks, plans, result files."""
