"""The figures of `mptune score` as text."""

from __future__ import annotations

import math
from typing import Any

from mptune.analysis.intervals import half_width

DOUBTS = {
    "few": "too few sequences to have seen rare ones",
    "skewed": "few sequences make the difference: it takes {groups_needed}, not {groups}",
    "carried": "one document carries it",
}
"""Why a difference is undecided although its interval excludes zero."""


def text(found: dict[str, Any]) -> str:
    """The figures of one model or of two as lines for a terminal."""
    return _race_text(found) if "models" in found else _model_text(found)


def _model_text(found: dict[str, Any]) -> str:
    low, high = found["interval_95_nats_per_token"]
    loss, pseudo = found["loss_at_15"], found["pseudo_log_likelihood"]
    tails, groups, population = found["tails"], _groups(found), found["se_of"] == "population"
    these = "this" if found["groups"] == 1 else "these"
    scope = "" if population else f", on {these} {groups} only"
    enough = f"; with this skewness {tails['groups_needed']} are enough" if population else ""
    lines = [
        found["model"],
        f"  accumulated LML   {found['nats_per_token']:.4f} nats per token "
        f"(95 % interval {low:.4f} to {high:.4f}{scope})",
        f"                    {found['nats_per_sequence']:.2f} nats per sequence, "
        f"{found['bits_per_byte']:.4f} ± {half_width(found['se_bits_per_byte']):.4f} bits per byte",
        f"  largest share     {tails['largest_share']:.1%} of the variance is of one of "
        f"{groups}{enough}",
        f"  loss at 15 %      {loss['nats_per_token']:.4f} ± {half_width(loss['se']):.4f} "
        "nats per masked token (bias "
        f"{found['bias_of_scoring_at_15_nats_per_token']:+.4f} against the LML)",
        f"  pseudo-log-lik.   {pseudo['nats_per_token']:.4f} ± {half_width(pseudo['se']):.4f} "
        "nats per token (M = 1; not a likelihood)",
    ]
    if found["order_gap_nats"]:
        gap = found["order_gap_nats"]
        lines.append(
            f"  order gap         {gap['rms']:.3f} ± {half_width(gap['se']):.3f} nats between two "
            "orders of a pair (0 for one joint distribution)"
        )
    missed = ""
    if not found["target_reached"]:
        error, target = found["se_nats_per_token"], found["target_se_nats_per_token"]
        what, least = "forwards", 0
        if population:
            what, least = "groups", tails["groups_needed"]
        named = "documents" if (what, found["grouped_by"]) == ("groups", "document") else what
        needed = max(math.ceil(found[what] * (error / target) ** 2), least)
        missed = f"; the standard error is {error:.4f}: {target} needs about {needed} {named}"
    lines.append(
        f"  {found['sequences']} sequences of {groups}, {found['forwards']} forwards (worth "
        f"{found['effective_sample_size']:.0f} plain ones) in {found['seconds']:.0f} s{missed}"
    )
    return "\n".join(lines)


def _groups(found: dict[str, Any]) -> str:
    """`180 documents`, or `5 groups (site)`."""
    n, by = found["groups"], found["grouped_by"]
    s = "" if n == 1 else "s"
    return f"{n} document{s}" if by == "document" else f"{n} group{s} ({by})"


def _race_text(found: dict[str, Any]) -> str:
    first, second = found["models"]
    other = second if found["verdict"] == first else first
    head = f"{found['verdict']} is better than {other}"
    if found["verdict"] == "undecided":
        head = f"Undecided between {first} and {second}"
        if found["doubt"]:
            head += f" ({DOUBTS[found['doubt']]})".format(**found["tails"])
    lines = [
        f"{head}: {first} has {found['difference_bits_per_byte']:+.4f} ± "
        f"{found['half_width_bits_per_byte']:.4f} bits per byte against {second}",
        f"  bits per byte: {found['bits_per_byte'][0]:.4f} and {found['bits_per_byte'][1]:.4f}",
    ]
    if found["same_tokenizer"]:
        lines.append(
            f"  {found['difference_nats_per_sequence']:+.2f} ± "
            f"{found['half_width_nats_per_sequence']:.2f} nats per sequence, "
            f"{found['difference_nats_per_token']:+.4f} nats per token (more is better)"
        )
    lines.append(
        f"  {found['forwards_of_each']} forwards of each, {_groups(found)}, in "
        f"{found['seconds']:.0f} s; the 95 % "
        "interval allows for every look"
    )
    return "\n".join(lines)
