"""What result files say: tables and plots, changes between two of them, the fastest backend of each op."""
