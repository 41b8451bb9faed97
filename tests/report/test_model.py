"""Ranking, recommendation, flip and checklist."""

from __future__ import annotations

import json
import math

import pytest

from mptune.analysis.intervals import lml_half_width
from mptune.analysis.ranking import best_per_policy, is_accumulated, is_fixed_15, ranking
from mptune.analysis.results import Report, spend
from mptune.analysis.selection import WeightedScore
from mptune.report.document import as_json
from mptune.report.findings import findings
from mptune.report.language import language
from mptune.report.pages import markdown
from mptune.report.pages import page as html
from mptune.trial import Trial
from tests.report.conftest import SIZES, comparison, make, result, search, trial

SMALL, LARGE = SIZES


def with_lml(row: Trial, nats_per_token: float) -> Trial:
    assert row.result is not None
    lml = row.result.lml.model_copy(update={"nats_per_token": nats_per_token})
    return row.model_copy(update={"result": row.result.model_copy(update={"lml": lml})})


def test_input_survives_json(compared: Report) -> None:
    assert Report.model_validate_json(compared.model_dump_json()) == compared


def test_ranking_is_by_lml_and_only_of_finished_trials() -> None:
    ranked = ranking(search())
    scores = [row.nats_per_token for row in ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(ranked) == 10
    assert {row.state for row in ranked} == {"COMPLETE"}


def test_a_score_that_is_not_finite_has_no_place() -> None:
    rows = search()
    broken = with_lml(rows[7], math.nan)
    assert 7 not in {row.number for row in ranking((*rows[:7], broken))}


def test_equal_scores_keep_their_order() -> None:
    rows = [with_lml(trial(n, SMALL, "fixed 15 %"), -1.0) for n in (4, 2, 3)]
    assert [row.number for row in ranking(rows)] == [2, 3, 4]


def test_half_width_is_student_over_sequences_per_token() -> None:
    lml = result(SMALL, "fixed 15 %").lml
    assert lml_half_width(lml) == pytest.approx(1.96618 * 2.1 / 128, rel=1e-4)


def test_best_per_policy_keeps_fixed_15_apart() -> None:
    best = best_per_policy(ranking(search()))
    assert [row.policy_label for row in best] == [
        "uniform (accumulated)", "beta(2.1, 1.7)", "linear 60 → 15 %", "fixed 30 %", "fixed 15 %",
    ]  # fmt: skip
    assert {row.size_label for row in best} == {LARGE}


@pytest.mark.parametrize(
    ("policy", "fixed", "accumulated"),
    [
        ({"kind": "fixed", "rate": 0.15}, True, False),
        ({"kind": "fixed", "rate": 0.3}, False, False),
        ({"kind": "uniform", "low": 0.0, "high": 1.0, "reduction": "elbo"}, False, True),
        ({"kind": "uniform", "low": 0.1, "high": 1.0}, False, False),
        ({"kind": "uniform", "reduction": "token_mean"}, False, False),
        ({}, False, False),
    ],
)
def test_sides(policy: dict[str, object], fixed: bool, accumulated: bool) -> None:
    assert (is_fixed_15(policy), is_accumulated(policy)) == (fixed, accumulated)


def test_recommendation_without_a_comparison(searched: Report) -> None:
    found = findings(searched)
    assert found.headline == f"uniform (accumulated) on {LARGE}"
    assert "of 10 finished candidates it has the highest accumulated LML" in found.recommendation[0]
    assert "The next policy, beta(2.1, 1.7)" in found.recommendation[1]
    assert found.verdict == "open"
    assert "not of training seeds" in found.certainty[0]


def test_recommendation_with_a_comparison(compared: Report) -> None:
    found = findings(compared)
    assert found.recommendation[1].startswith("On paired seeds, accumulated beats fixed 15 % by ")
    assert found.verdict_label == "accumulated is better"
    assert "with probability" in found.certainty[0]
    assert found.cost.startswith("19 training runs, ")


def test_paired_seeds_overrule_the_best_single_run() -> None:
    rows = list(search())
    rows[5] = with_lml(rows[5], -0.5)  # a lucky run of fixed 15 % at the large size
    found = findings(make(tuple(rows), comparison()))
    assert found.headline == f"uniform (accumulated) on {LARGE}"
    assert "but it lost on paired seeds" in found.recommendation[0]
    assert json.loads(as_json(make(tuple(rows), comparison())))["recommended"]["best_trial"] == 5


def test_the_pair_that_the_study_is_about_comes_first() -> None:
    report = make(compared=comparison(("fixed 15 %", "fixed 30 %", "accumulated")))
    found = findings(report)
    assert found.verdict_title == "Accumulated against fixed 15 %"
    first, second = found.verdict_words
    assert first.startswith("Accumulated")
    assert second.startswith("Fixed 30 %")


def test_flip_says_which_criterion_prefers_what(compared: Report) -> None:
    large, small = findings(compared).flips
    assert (large.by_loss, large.by_lml) == ("fixed 15 %", "accumulated")
    assert large.disagree
    assert large.words == (
        f"At {LARGE}, loss at 15 % masking picks fixed 15 % (1.009 against 1.031 nats per masked "
        "position), but the LML picks accumulated (−1.660 against −1.784 nats per token). The "
        "differences are 0.023 ± 0.014 and 0.125 ± 0.014 (95 % intervals, over 3 paired seeds, "
        "for this pair and these held-out sequences only, so narrower than the interval of the "
        "verdict)."
    )
    assert not small.disagree, "single runs whose difference in loss is within its noise"
    assert "the criteria differ, but the differences, 0.026 ± 0.055" in small.words
    assert "evaluation noise only" in small.words


def test_no_flip_when_both_criteria_agree() -> None:
    rows = (trial(0, SMALL, "fixed 15 %"), with_lml(trial(1, SMALL, "uniform (accumulated)"), -9.0))
    (flip,) = findings(make(rows)).flips
    assert (flip.by_loss, flip.by_lml) == ("fixed 15 %", "fixed 15 %")
    assert not flip.disagree
    assert "the LML is higher for fixed 15 %" in flip.words


def missing(report: Report) -> str:
    return "\n".join(check.words for check in findings(report).checks if not check.ok)


def test_checklist_names_what_is_missing(searched: Report, compared: Report) -> None:
    assert "no comparison on paired seeds yet" in missing(searched)
    assert missing(compared).splitlines() == [
        "10 of 13 trials finished, 1 stopped early, 2 failed: see failures below",
        "scored in-distribution only: name other held-out data in data.domains",
        "not compared with your own KPI: name your function in score.kpi",
    ]


def with_warnings(report: Report, *warnings: str) -> Report:
    assert report.prepared is not None
    prepared = report.prepared.model_copy(update={"warnings": warnings})
    return report.model_copy(update={"prepared": prepared})


def test_checklist_repeats_what_the_inspection_of_the_data_found(searched: Report) -> None:
    clean, leaking = with_warnings(searched), with_warnings(searched, "leakage: 9 of 384 sequences")
    assert "the data: leakage: 9 of 384 sequences" in missing(leaking)
    assert "leakage" not in missing(clean)
    words = [check.words for check in findings(clean).checks]
    assert any(line.startswith("data inspected and frozen as table ab12cd34") for line in words)


def test_checklist_says_whose_weights_were_not_kept(searched: Report) -> None:
    trials = [
        trial.model_copy(
            update={"result": trial.result.model_copy(update={"unkept": "they differ"})}
        )
        if trial.result
        else trial
        for trial in searched.trials
    ]
    changed = searched.model_copy(update={"trials": tuple(trials)})
    assert "trials were not kept; of the first: they differ" in missing(changed)
    assert "not kept" not in missing(searched)


def test_checklist_of_a_comparison_alone_is_about_its_runs(compared: Report) -> None:
    alone = compared.model_copy(update={"trials": ()})
    arms = alone.comparison.arms.values() if alone.comparison else ()
    runs = sum(len(arm) for arm in arms)
    words = [check.words for check in findings(alone).checks]
    assert words[0] == f"{runs} of {runs} trials finished, 0 stopped early, none failed"
    assert "every score is on the same held-out sequences and masks" in words
    assert not any("score.kpi" in line for line in words)


def test_checklist_of_a_study_with_everything(everything: Report) -> None:
    assert missing(everything).splitlines() == [
        "10 of 13 trials finished, 1 stopped early, 2 failed: see failures below"
    ]
    words = "\n".join(check.words for check in findings(everything).checks)
    assert "scored on 2 other domains, the worst of which is e-mail <lists>" in words
    assert "the LML predicts your KPI mypackage.kpi:downstream: Spearman 0.88" in words
    assert "trained again with 3 fresh seeds" in words


def test_a_choice_by_weights_says_the_rule_and_the_scores(everything: Report) -> None:
    assert everything.selection is not None
    parts = (("heldout", 1.0, -2.0), ("e-mail", 0.25, -3.0))
    weighted = tuple(WeightedScore(name=n, weight=w, nats_per_token=s) for n, w, s in parts)
    selection = everything.selection.model_copy(
        update={"chosen_by": "weights", "weighted": weighted}
    )
    report = everything.model_copy(update={"selection": selection})
    rule = "1 × in distribution (−2.000) + 0.25 × e-mail (−3.000)"
    mean = f"the highest weighted mean of scores, −2.200 nats per token: {rule}."
    assert mean in findings(report).recommendation[0]
    assert f"by the weighted mean of its scores: {rule}." in markdown(report)
    japanese = language("ja")
    assert "−2.200" in findings(report, japanese).recommendation[0]


def test_the_interval_of_the_better_predictor_has_its_sign(everything: Report) -> None:
    assert everything.kpi is not None
    ends = {"difference": -0.26, "difference_low": -1.13, "difference_high": 0.6}
    kpi = everything.kpi.model_copy(update={**ends, "better": "loss", "certain": False})
    page = markdown(everything.model_copy(update={"kpi": kpi}))
    assert "τ is higher by 0.26 (95 % interval −0.60 to 1.13, 10 trials)" in page


def test_a_kpi_whose_interval_holds_zero_is_open(everything: Report) -> None:
    kpi = everything.kpi
    assert kpi is not None
    weak = kpi.correlations[0].model_copy(update={"value": 0.1, "low": -0.4, "high": 0.6})
    changed = kpi.model_copy(update={"correlations": (weak,)})
    assert "is open: Spearman 0.10 (95 % interval −0.40 to 0.60)" in missing(
        everything.model_copy(update={"kpi": changed})
    )


def test_confirmed_trial_is_recommended_with_its_expected_score(everything: Report) -> None:
    found = findings(everything)
    assert found.score == pytest.approx((-1.666, 0.021), abs=1e-3)
    assert "with 3 fresh seeds on a fresh plan" in found.recommendation[0]
    assert "from its 4 runs: −1.666 ± 0.021" in found.certainty[-1]
    assert "accumulated reaches fixed 15 %'s LML with 0.62 times its FLOPs" in (
        found.verdict_words[1][0].lower() + found.verdict_words[1][1:]
    )


def test_without_repeated_seeds_no_probability_is_printed(everything: Report) -> None:
    selection = everything.selection
    assert selection is not None
    unknown = dict.fromkeys(
        ("half_width_total", "expected", "half_width", "probability", "expected_regret")
    )
    candidates = tuple(
        c.model_copy(update={**unknown, "confirmation": None}) for c in selection.candidates
    )
    changed = selection.model_copy(
        update={"candidates": candidates, "seed_sd": None, "chosen_by": "search"}
    )
    report = everything.model_copy(update={"selection": changed, "comparison": None})
    found = findings(report)
    assert found.chances == ()
    assert "`search.confirm: {top: 3, seeds: 2}`" in found.certainty[-1]
    assert "probability" not in " ".join(found.recommendation)
    page = markdown(report)
    assert "P(best) |" not in page
    assert "P(best) |" in markdown(everything)
    assert "LML, nats per token (± evaluation)" in page
    assert "LML, nats per token (± seeds and evaluation)" in markdown(everything)
    assert found.score == (selection.candidates[0].nats_per_token, pytest.approx(0.033, abs=0.01))


def counted(report: Report, counting: float, last_value: float | None = None) -> Report:
    assert report.prepared is not None
    values = {"counting": counting, "last_value": last_value}
    prepared = report.prepared.model_copy(update=values)
    return report.model_copy(update={"prepared": prepared})


def test_nothing_is_recommended_that_is_not_better_than_counting(
    searched: Report, compared: Report
) -> None:
    alone = compared.model_copy(update={"trials": ()})
    for report in (searched, alone):
        (words,) = findings(counted(report, -1.6)).recommendation
        assert "not above that of a model that only knows how frequent each symbol is" in words
        assert findings(counted(report, -1.6)).headline.endswith("train longer")
        assert not findings(counted(report, -1.6)).learned
        assert findings(counted(report, -1.9)) == findings(report)
        assert findings(report).learned
        for page in (markdown(counted(report, -1.6)), html(counted(report, -1.6))):
            assert "Nothing was learned that counting does not know" in page
            assert "Pre-train" not in page


def test_counting_has_its_place_in_the_ranking(searched: Report) -> None:
    scores = [trial.nats_per_token for trial in ranking(searched.trials)]
    lines = markdown(counted(searched, (scores[2] + scores[3]) / 2)).splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("| 1 |"))
    assert lines[first + 3].startswith("| – | counting symbols only | −1.7")
    assert lines[first + 3].count("|") == lines[first].count("|")
    assert lines[first + 4].startswith("| 4 |")
    for counting in (-9.0, -1.0):
        highlighted = html(counted(searched, counting)).partition('<tr class="first">')[2]
        assert highlighted.startswith('<td class="num" data-sort="1.0">1</td>'), counting


def test_the_better_of_two_baselines_is_to_be_beaten(searched: Report) -> None:
    """Of series, the last value is often better than frequencies."""
    scores = [trial.nats_per_token for trial in ranking(searched.trials)]
    report = counted(searched, -9.0, scores[0] + 0.01)
    (words,) = findings(report).recommendation
    assert "not above that of a model that only knows the last visible value, −1.6" in words
    page = markdown(report)
    places = [page.index(row) for row in ("| – | last value only", "| 1 |", "| – | counting symb")]
    assert places == sorted(places)
    assert findings(counted(searched, -9.0, -9.5)).learned


def test_counting_stands_beside_the_arms_of_a_comparison_alone(compared: Report) -> None:
    words = "Without any training here, in nats per token: counting symbols only −1.900"
    assert words not in markdown(counted(compared, -1.9)), "it is in the ranking"
    alone = markdown(counted(compared.model_copy(update={"trials": ()}), -1.9))
    assert f"{words}; the arms score −1.784 to −1.660." in alone


def test_confirming_may_overturn_the_search(everything: Report) -> None:
    selection = everything.selection
    assert selection is not None
    other = selection.candidates[1]
    changed = selection.model_copy(update={"recommended": other.trial, "overturned": True})
    alone = everything.model_copy(update={"selection": changed, "comparison": None})
    found = findings(alone)
    assert found.recommended is not None
    assert found.recommended.number == other.trial
    assert found.ranked.index(found.recommended) == 1
    assert "ahead in the search" in found.recommendation[1]


def test_checklist_sees_another_plan_and_other_budgets() -> None:
    rows = list(search()[:10])
    assert rows[0].result is not None
    lml = rows[0].result.lml.model_copy(update={"plan_hash": "other", "forwards": 64})
    cost = rows[0].result.cost.model_copy(update={"tokens": 9, "flops": 9.0, "training_s": 9.0})
    changed = {"lml": lml, "cost": cost, "versions": {"torch": "1.0"}}
    rows[0] = rows[0].model_copy(update={"result": rows[0].result.model_copy(update=changed)})
    found = missing(make(tuple(rows)))
    assert "different scoring plans" in found
    assert "only 64 forwards" in found
    assert "different budgets" in found
    assert "different versions" in found


def test_failures_are_grouped_by_reason(searched: Report) -> None:
    ((reason, trials),) = findings(searched).failures
    assert reason == "non_finite_loss"
    assert [t.number for t in trials] == [11, 12]


def test_nothing_finished(empty: Report) -> None:
    found = findings(empty)
    assert found.headline == "No recommendation yet"
    assert found.recommended is None
    assert found.checks[0].words.startswith("0 of 2 trials finished")


def test_comparison_alone_recommends_its_best_arm() -> None:
    found = findings(make((), comparison()))
    assert found.headline == f"uniform (accumulated) on {LARGE}"
    assert found.recommendation[0].startswith("Of the arms compared, accumulated has the highest")


def test_report_json_is_strict() -> None:
    rows = (with_lml(trial(0, SMALL, "fixed 15 %"), math.nan), trial(1, SMALL, "fixed 30 %"))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    value = json.loads(as_json(make(rows)), parse_constant=refuse)
    assert value["schema_version"] == 2
    assert value["input"]["trials"][0]["result"]["lml"]["nats_per_token"] is None
    assert value["ranking"][0]["trial"] == 1


def test_spend_counts_worker_time() -> None:
    total = spend([result(SMALL, "fixed 15 %")] * 2, trials=3, wall_s=60.0)
    assert (total.trials, total.tokens, total.worker_s) == (3, 3_000_000, 2 * 57.0 * 2)


def test_what_the_exposure_sampler_has_paused_is_no_error_of_a_pruner(searched: Report) -> None:
    judged = ({"decision": "pause", "progress": 0.5, "why": "trial 1 is the best in this draw"},)
    paused = [
        t.model_copy(update={"judged": judged}) if t.state == "PRUNED" else t
        for t in searched.trials
    ]
    asked = "pruner stopped the best"
    assert asked in "\n".join(c.words for c in findings(searched).checks)
    changed = searched.model_copy(update={"trials": tuple(paused)})
    words = [c.words for c in findings(changed).checks]
    assert asked not in "\n".join(words)
