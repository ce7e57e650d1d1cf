"""How `evo selftest` writes a check."""

from sh2.reading.selftest import Check

LEAST_PROMPT = 2  # bases: of the first nothing is predicted

_RESULTS = {True: "pass", False: "fail", None: "none"}


def cells(check: Check) -> list[str]:
    """A row: name, value, what is allowed, pass, fail or none, and a note."""
    value = "" if check.value is None else f"{check.value:.4g}"
    return [check.name, value, check.allowed, _RESULTS[check.passed], check.note]
