"""Names of the commands, and how they end."""

EXIT_FAILED = 1
EXIT_USAGE = 2

COMMANDS = {
    "fit": "fit",
    "test": "evaluate",
    "predict": "predict",
    "explain": "explain",
    "convert": "convert",
    "doctor": "doctor",
}
"""Name of a command -> the module that holds it."""
