"""The result of `mptune score`: figures for JSON, and text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mptune.analysis.intervals import half_width

if TYPE_CHECKING:
    from mptune.tools.score import ModelScore, Race


DOUBTS = {
    "few": "too few sequences to have seen rare ones",
    "skewed": "few sequences make the difference: it takes {groups_needed}, not {groups}",
    "carried": "one document carries it",
}
"""Why a difference is undecided although its interval excludes zero."""


def model_figures(found: ModelScore) -> dict[str, Any]:
    """The output of --json for one model; the keys have the units."""
    estimate, per_position = found.estimate, 1.0 / _tokens_per_sequence(found.estimate)
    score, error, df = estimate.per(estimate.positions)
    half = half_width(error, df)
    bits = found.prepared.bytes_N[estimate.sequence_index] * math.log(2)
    at_15, at_one = found.at_rates
    pseudo = at_one.nats_per_position
    return {
        "model": found.prepared.model.name,
        "nats_per_sequence": estimate.nats_per_sequence,
        "nats_per_token": estimate.nats_per_position,
        "bits_per_byte": found.bits_per_byte,
        "se_bits_per_byte": estimate.per(bits)[1],
        "interval_95_nats_per_token": [score - half, score + half],
        "se_nats_per_token": found.error,
        "se_of": estimate.scope,
        "se_fixed_nats_per_token": estimate.se_fixed * per_position,
        "target_se_nats_per_token": found.target_se,
        "target_reached": found.reached,
        "tails": _tails(estimate.tails),
        "loss_at_15": {"nats_per_token": -at_15.nats_per_position, "se": at_15.se},
        "pseudo_log_likelihood": {"nats_per_token": pseudo, "se": at_one.se},
        "order_gap_nats": None if found.gap is None else {"rms": found.gap.rms, "se": found.gap.se},
        "bias_of_scoring_at_15_nats_per_token": at_15.nats_per_position
        - estimate.nats_per_position,
        "sequences": estimate.n_sequences,
        "groups": estimate.n_groups,
        "forwards": estimate.forwards_used,
        "effective_sample_size": estimate.effective_sample_size,
        "seconds": found.seconds,
        "plan_hash": estimate.plan_hash,
        "curve": _curve(estimate.curve),
    }


def _tokens_per_sequence(estimate: Any) -> float:
    return float(estimate.positions.sum()) / float(estimate.n_sequences)


def _tails(tails: Any) -> dict[str, float]:
    return {
        "largest_share": tails.share,
        "skewness": tails.skewness,
        "groups": tails.count,
        "groups_needed": tails.needed,
    }


def _curve(curve: Any) -> list[dict[str, float]]:
    names = ("mask_rate", "mean_log_prob", "se", "variance_share")
    columns = [getattr(curve, name).tolist() for name in names]
    return [dict(zip(names, point, strict=True)) for point in zip(*columns, strict=True)]


def race_figures(found: Race) -> dict[str, Any]:
    """The output of --json for two models."""
    result = found.comparison
    names = [prepared.model.name for prepared in found.prepared]
    per_byte = 1.0 / math.log(2) / found.bytes_per_sequence
    per_token = 1.0 / _tokens_per_sequence(result.a) if found.same_tokens else None
    return {
        "models": names,
        "verdict": {"a": names[0], "b": names[1]}.get(result.verdict, "undecided"),
        "doubt": result.doubt,
        "tails": _tails(result.tails),
        "difference_bits_per_byte": -result.difference * per_byte,
        "half_width_bits_per_byte": result.half_width * per_byte,
        "difference_nats_per_sequence": result.difference,
        "half_width_nats_per_sequence": result.half_width,
        "difference_nats_per_token": result.difference * per_token if per_token else None,
        "half_width_nats_per_token": result.half_width * per_token if per_token else None,
        "same_tokenizer": found.same_tokens,
        "bits_per_byte": [
            p.bits_per_byte(e) for p, e in zip(found.prepared, (result.a, result.b), strict=True)
        ],
        "sequences": result.a.n_sequences,
        "groups": result.a.n_groups,
        "forwards_of_each": result.forwards,
        "seconds": found.seconds,
        "curves": {n: _curve(e.curve) for n, e in zip(names, (result.a, result.b), strict=True)},
    }


def text(found: dict[str, Any]) -> str:
    """The figures of one model or of two as lines for a terminal."""
    return _race_text(found) if "models" in found else _model_text(found)


def _model_text(found: dict[str, Any]) -> str:
    low, high = found["interval_95_nats_per_token"]
    loss, pseudo = found["loss_at_15"], found["pseudo_log_likelihood"]
    tails, groups = found["tails"], f"{found['groups']} groups"
    scope = "" if found["se_of"] == "population" else f", on these {groups} only"
    lines = [
        found["model"],
        f"  accumulated LML   {found['nats_per_token']:.4f} nats per token "
        f"(95 % interval {low:.4f} to {high:.4f}{scope})",
        f"                    {found['nats_per_sequence']:.2f} nats per sequence, "
        f"{found['bits_per_byte']:.4f} ± {half_width(found['se_bits_per_byte']):.4f} bits per byte",
        f"  largest share     {tails['largest_share']:.1%} of the variance is of one of "
        f"{tails['groups']}; with this skewness {tails['groups_needed']} are enough",
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
        if found["se_of"] == "population":
            what, least = "groups", tails["groups_needed"]
        needed = max(math.ceil(found[what] * (error / target) ** 2), least)
        missed = f"; the standard error is {error:.4f}: {target} needs about {needed} {what}"
    lines.append(
        f"  {found['sequences']} sequences of {groups}, {found['forwards']} forwards (worth "
        f"{found['effective_sample_size']:.0f} plain ones) in {found['seconds']:.0f} s{missed}"
    )
    return "\n".join(lines)


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
        f"  {found['forwards_of_each']} forwards of each, {found['groups']} groups, in "
        f"{found['seconds']:.0f} s; the 95 % "
        "interval allows for every look"
    )
    return "\n".join(lines)
