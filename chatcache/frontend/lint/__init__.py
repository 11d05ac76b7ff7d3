"""The linter of prefixes: what makes the beginning of a prompt change, and so costs its reuse.

Rules are pure functions of texts and figures; what they find is a `LintFinding`. No model is asked.
"""
