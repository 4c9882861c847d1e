"""Configuration: one schema for the command line, YAML and Python; unknown keys name the nearest."""

from __future__ import annotations

import pytest

from tutelage.errors import TutelageError
from tutelage.study.config import Arm, Run, make_run, parse_arm, parse_budget, parse_value


def test_an_arm_is_a_curriculum_with_parameters():
    assert parse_arm("uniform") == Arm(name="uniform")
    arm = parse_arm("sec:tau=0.2,alpha=1e-1,decay_unseen=false")
    assert (arm.name, arm.curriculum) == ("sec:tau=0.2,alpha=1e-1,decay_unseen=false", "sec")
    assert arm.parameters == {"tau": 0.2, "alpha": 0.1, "decay_unseen": False}


@pytest.mark.lm
def test_an_arm_joins_parts_of_different_kinds():
    arm = parse_arm("sec:tau=0.2+trl:gkd:beta=0.1")
    assert (arm.curriculum, arm.parameters) == ("sec", {"tau": 0.2})
    assert (arm.objective, arm.objective_parameters, arm.teacher) == ("trl:gkd", {"beta": 0.1}, None)
    alone = parse_arm("dapo")
    assert (alone.curriculum, alone.objective, alone.name) == ("uniform", "dapo", "dapo")
    with pytest.raises(TutelageError, match="two of one kind: 'sec' and 'dump'"):
        parse_arm("sec+dump")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unifrom", "Did you mean 'uniform'"),
        ("sec:tua=1", "Did you mean 'tau'"),
        ("sec:tau=warm", "tau='warm'"),
        ("sec:tau", "write name:key=value"),
        ("none.yaml", "There is no file none.yaml"),
        ("alp-gmm", "continuous space"),
    ],
)
def test_a_bad_arm_is_an_error_that_names_the_fix(text, words):
    with pytest.raises(TutelageError, match=words):
        parse_arm(text)


def test_an_arm_from_yaml(tmp_path):
    (tmp_path / "mine.yaml").write_text("curriculum: dump\nparameters: {window: 60}\nsettings: {learning_rate: 1.0e-5}\n")
    arm = parse_arm(str(tmp_path / "mine.yaml"))
    assert (arm.name, arm.curriculum, arm.parameters, arm.settings) == ("mine", "dump", {"window": 60}, {"learning_rate": 1e-5})
    (tmp_path / "bad.yaml").write_text("curiculum: dump\n")
    with pytest.raises(TutelageError, match="Did you mean 'curriculum'"):
        parse_arm(str(tmp_path / "bad.yaml"))


def test_typed_options_win_over_the_file_and_set_wins_over_both(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "steps: 10\ntasks: gcd\nevaluation: {points: 2}\nsettings: {beta: 0.01}\narms: [uniform, {name: mine, curriculum: sec}]\n"
    )
    run = make_run(file, {"steps": 20, "model": None}, ["evaluation.tasks_per_arm=5", "learning_rate=3e-4", "seeds=9"])
    assert (run.steps, run.tasks, run.seeds, run.evaluation.points, run.evaluation.tasks_per_arm) == (20, ["gcd"], 9, 2, 5)
    assert run.settings == {"beta": 0.01, "learning_rate": 3e-4}
    assert [arm.name for arm in run.arms] == ["uniform", "mine"]


def test_a_reward_is_a_mode_or_its_fields(tmp_path):
    assert make_run(None, {}, []).reward.mode == "grade"
    assert make_run(None, {}, ["reward=correct_only"]).reward.mode == "correct_only"
    file = tmp_path / "run.yaml"
    file.write_text("reward: {mode: format_independent, values: [1, 0, 0, -1]}\n")
    run = make_run(file, {}, ["reward.formatted=marked"])
    assert run.reward.model_dump(exclude_none=True) == {"mode": "format_independent", "formatted": "marked", "values": (1, 0, 0, -1)}
    assert Run.model_validate(run.model_dump(mode="json")).reward == run.reward  # --resume reads what was stored


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reward: correct", "correct_only"),
        ("reward: {moed: grade}", "Did you mean 'mode'"),
        ("reward: correct_only\nformat_reward: 0.1", "Drop one of the two"),
        ("template: 'Question: {question}'", "no place for the task"),
        ("stepz: 3", "Did you mean 'steps'"),
        ("steps: many", "steps"),
        ("evaluation: {pointz: 3}", "Did you mean 'points'"),
        ("steps: 0", "greater than or equal to 1"),
        ("- 1\n- 2", "must hold a mapping"),
        ("steps: [1", "not readable as YAML"),
        ("arms: [uniform, uniform]", "named twice"),
    ],
)
def test_a_bad_file_is_an_error_with_its_name(tmp_path, text, words):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(TutelageError, match=words) as caught:
        make_run(file, {}, [])
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3000rollouts", ("rollouts", 3000.0)),
        ("1_000 updates", ("updates", 1000.0)),
        ("2.5seconds", ("seconds", 2.5)),
        ("10tokens", ("tokens", 10.0)),
    ],
)
def test_budgets(text, found):
    assert parse_budget(text) == found


@pytest.mark.parametrize("text", ["3000", "rollouts", "-3updates", "0updates", "3 epochs"])
def test_a_bad_budget_says_how_to_write_one(text):
    with pytest.raises(TutelageError, match="3000rollouts"):
        parse_budget(text)


def test_values_from_the_command_line():
    assert [parse_value(v) for v in ("1e-4", "2E3", "true", "[1, 2]", "adam", "null")] == [1e-4, 2e3, True, [1, 2], "adam", None]
    with pytest.raises(TutelageError, match="key=value"):
        make_run(None, {}, ["novalue"])


@pytest.mark.lm
def test_unknown_engine_options_name_the_nearest():
    from tutelage.study.engines import check_settings, settings_of

    uniform, supervised = parse_arm("uniform"), Arm(name="sft", trainer="sft")
    check_settings(Run(settings={"learning_rate": 1e-4, "num_generations": 4}), [uniform])
    with pytest.raises(TutelageError, match="Did you mean 'num_generations'"):
        check_settings(Run(settings={"num_generation": 4}), [uniform])
    with pytest.raises(TutelageError, match="Did you mean 'max_length'"):
        check_settings(Run(settings={"max_lenght": 4}), [supervised])
    mixed = Run(settings={"num_generations": 4, "max_length": 99})
    check_settings(mixed, [uniform, supervised])  # each engine gets what it has
    assert settings_of(mixed, uniform)["num_generations"] == 4
    assert settings_of(mixed, supervised)["max_length"] == 99
    assert "num_generations" not in settings_of(mixed, supervised)
    with pytest.raises(TutelageError, match="num_generations"):
        check_settings(Run(), [supervised.model_copy(update={"settings": {"num_generations": 4}})])
    assert Run().steps == 60
