"""The model card of kept weights, in the format of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mptune.artifacts import await_hub
from mptune.trial import TrialResult, TrialSpec

README = "README.md"


def model_card(trial: TrialSpec, result: TrialResult, folder: Path) -> str:
    """The text of the card of a trial's weights, which are in `folder` already.

    See https://huggingface.co/docs/hub/model-cards for the keys of its head.
    """
    from huggingface_hub import ModelCardData

    base = trial.model.get("from")
    base_name = Path(base).name if base and Path(base).exists() else base
    has_tokenizer = (folder / "tokenizer_config.json").exists()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    is_decoder = str(config.get("architectures")).endswith("ForCausalLM']")
    kind = "AutoModelForCausalLM" if is_decoder else "AutoModelForMaskedLM"
    head = ModelCardData(
        base_model=base_name,
        library_name="transformers",
        pipeline_tag="fill-mask" if has_tokenizer and not is_decoder else None,
        tags=["masked-lm", "mptune"],
        **(license_of(base, trial.model.get("revision")) if base else {}),
    )
    rows = _table(trial, result).items()
    code = ", trust_remote_code=True" if "auto_map" in config else ""
    names = [kind, *(["AutoTokenizer"] if has_tokenizer else [])]
    lines = [f"from transformers import {', '.join(names)}"]
    lines.append(f"model = {kind}.from_pretrained(FOLDER{code})")
    if is_decoder:
        lines.append("# Each position sees all others: attention_mask is [B, 1, D, D], of ones.")
    if has_tokenizer:
        lines.append("tokenizer = AutoTokenizer.from_pretrained(FOLDER)")
    origin = f"goes on from {base_name}" if base else "was trained from scratch"
    further = ", or `model: {from: FOLDER}` in a spec of mptune" if has_tokenizer else ""
    return "\n".join(
        [
            f"---\n{head.to_yaml()}\n---\n",
            f"# {trial.label}\n",
            f"A masked language model that {origin}: a trial of mptune, which searches for the "
            "mask-rate policy with the highest log-marginal likelihood (LML) of held-out data.\n",
            "| | |\n|---|---|",
            *(f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in rows),
            f"\n## How to go on\n\nFOLDER is this folder, or its name on the hub{further}.\n",
            "```python",
            *lines,
            "```\n",
        ]
    )


def _table(trial: TrialSpec, result: TrialResult) -> dict[str, str]:
    """The table of the card: what was trained, and its scores."""
    data = trial.prepared.description
    given = trial.data.get("source", ())
    for source in [given] if isinstance(given, str) else given:
        if Path(source).is_absolute():  # a card is shared, so it has no directories
            data = data.replace(source, Path(source).name)
    lml, cost = result.lml, result.cost
    scope = lml.scope or f"for new groups of sequences ({lml.grouped_by}) and new masks"
    error = f" ± {lml.error[0]:.4f}" if lml.se_per_token is not None else ""
    rows = {
        "Mask policy": f"{trial.policy_label}: `{flow(trial.policy)}`",
        "Model": f"{trial.size_label}, {cost.parameters:,} parameters",
        "Data": f"{data}; table {trial.prepared.table_hash}",
        "Training": f"{cost.tokens:,} tokens in {cost.steps:,} steps, seed {trial.seed}",
        "Accumulated LML": f"{lml.nats_per_token:.4f}{error} nats per token (± is one standard "
        f"error, {scope})",
    }
    if len(result.rows_drawn) > 1:
        drawn = (f"{number:,} of {name}" for name, number in result.rows_drawn.items())
        rows["Sequences drawn"] = ", ".join(drawn)
    if result.learned_policy is not None:
        rows["Policy that was learned"] = f"`{flow(result.learned_policy)}`"
    if trial.model.get("from") and trial.prepared.as_it_is is not None:
        rows["LML before this training"] = (
            f"{trial.prepared.as_it_is:.4f} nats per token, on the same sequences and masks "
            "(of several checkpoints in one search, the best one's)"
        )
    for domain, score in result.lml_shift.items():
        rows[f"LML on {domain}"] = (
            f"{score.nats_per_token:.4f} ± {score.error[0]:.4f} nats per token"
        )
    for rate in result.rates:
        rows[f"Loss at {rate.rate:.3g} masked"] = (
            f"{rate.loss:.4f} ± {rate.loss_se:.4f} nats per masked position, accuracy "
            f"{rate.accuracy:.3f} ± {rate.accuracy_se:.3f}"
        )
    return rows


def flow(section: Mapping[str, Any]) -> str:
    """A section of a spec in one line of YAML."""
    text = yaml.safe_dump(section, default_flow_style=True, sort_keys=False, allow_unicode=True,
                          width=10**6)  # fmt: skip
    return str(text).strip()


def license_of(checkpoint: str, revision: str | None) -> dict[str, Any]:
    """The licence that a checkpoint's own card or configuration names, as keys of a card.

    Empty if neither names one, or the hub does not answer.
    """
    from huggingface_hub import ModelCard, hf_hub_download

    found: dict[str, Any] = {}
    for file in ("config.json", README):
        try:
            path = Path(checkpoint, file)
            if not Path(checkpoint).exists():
                await_hub(checkpoint, file, revision)
                path = Path(hf_hub_download(checkpoint, file, revision=revision))
            text = path.read_text(encoding="utf-8")
            found |= json.loads(text) if file != README else vars(ModelCard(text).data)
        except Exception:  # no such file, no network, or not what its name says
            continue
    keys = ("license", "license_name", "license_link")
    return {key: found[key] for key in keys if isinstance(found.get(key), str)}
