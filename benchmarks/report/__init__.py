"""Evaluates result files: tables and plots, changes between two of them, the fastest backend per op."""
