"""Whether a registered version may be served: the flow `deploy` and the service use the same rule."""

from collections.abc import Mapping

OVERRIDE = "gate_override"
"""Tag that lets a version be served without a passed gate: `who: why`."""

SMOKE_TEST = "smoke_test"
"""Tag: `passed`, or `failed: why` if the bento of the version did not give the package's answers."""

ADVICE = f"Move the alias `champion` to another version, or set the tag {OVERRIDE} to `who: why`"


def obstacle(number: int | str, tags: Mapping[str, str]) -> str | None:
    """Why the version with these tags may not be served; None if it may."""
    if tags.get(SMOKE_TEST, "").startswith("failed"):
        why = tags[SMOKE_TEST].partition(": ")[2]
        return f"version {number} did not pass its smoke test: {why}. Remove its tag {SMOKE_TEST} to try it again"
    override = tags.get(OVERRIDE)
    if tags.get("gate") == "passed" or (override is not None and _names_who_and_why(override)):
        return None
    failed = failed_gates(tags)
    reason = f"version {number} did not pass its gate: {'; '.join(failed) or tags.get('gate', 'it has none')}"
    if override is not None:
        reason += f". Its tag {OVERRIDE} is {override!r}, not `who: why`"
    return reason


def failed_gates(tags: Mapping[str, str]) -> list[str]:
    """The failed gates of a version and what they found, from its tags."""
    gates = {name.removeprefix("gate."): value for name, value in sorted(tags.items()) if name.startswith("gate.")}
    return [f"{name} {value}" for name, value in gates.items() if value.startswith("failed:")]


def _names_who_and_why(override: str) -> bool:
    who, _, why = override.partition(":")
    return bool(who.strip() and why.strip())
