"""Names of the commands, and how they end; nothing heavy."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TERMINATED = 143  # as of a process that SIGTERM ended


class UsageError(ValueError):
    """The command was called in a way that cannot work."""


COMMANDS = {
    "fit": "fit",
    "test": "evaluate",
    "folds": "folds",
    "check": "check",
    "prepare": "prepare",
    "predict": "predict",
    "explain": "explain",
    "annotate": "annotate",
    "live": "live",
    "app": "app",
    "convert": "convert",
    "export": "export",
    "doctor": "doctor",
    "completion": "completion",
}
"""Name of a command -> the module that holds it."""
