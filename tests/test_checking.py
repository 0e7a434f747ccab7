"""What is said of tasks that break the contract."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxrl import envs
from jaxrl.commands import check
from jaxrl.envs import ArraySpec
from jaxrl.envs.checking import check_task
from jaxrl.errors import UserError
from tests.toys import Absurd, Chancy, Countdown, Fragile, Stillborn


def task(reset=None, step=None, **attributes):
    """`Countdown` with something else in its specs, or in the states of `reset` and `step`."""

    def changed(change, state):
        return state.replace(**change(state)) if change else state

    own = {
        "reset": lambda self, key: changed(reset, Countdown.reset(self, key)),
        "step": lambda self, state, action: changed(step, Countdown.step(self, state, action)),
    }
    settings = {k: v for k, v in attributes.items() if not k.endswith("_spec")}
    specs = {k: v for k, v in attributes.items() if k.endswith("_spec")}
    own |= {name: property(lambda self, v=v: v) for name, v in specs.items()}
    return type("Broken", (Countdown,), own)(**settings)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (task(observation_spec=ArraySpec((3,))), r"reset: obs has the shape \(2,\), but .* \(3,\)"),
        (task(observation_spec={"a": ArraySpec((2,))}), "obs is one array, but observation_spec is a dict"),
        (task(observation_spec=ArraySpec((2,), names=("one",))), "1 names for 2 components"),
        (task(observation_spec=ArraySpec((2,), names=("a", "a"))), "two components have the name 'a'"),
        (task(observation_spec=(2,)), "got tuple, expected an ArraySpec"),
        (task(action_spec=ArraySpec((1,), -2, 2)), "has the bounds -2 and 2, must have -1 and 1"),
        (task(action_spec=ArraySpec((2, 2), -1, 1)), r"has the shape \(2, 2\), expected \(A,\)"),
        (task(control_dt=0.0), "control_dt is 0.0, must be a positive number"),
        (task(episode_length=2.5), "episode_length is 2.5, must be a whole number"),
        (task(step=lambda s: {"reward": s.reward[None]}), r"step: reward has the shape \(1,\)"),
        (task(step=lambda s: {"terminated": jnp.zeros(2, bool)}), r"terminated has the shape \(2,\)"),
        (task(step=lambda s: {"metrics": {}}), r"state.metrics\['half'\] is float32\[\] after reset and missing"),
        (task(step=lambda s: {"obs": s.obs.astype(jnp.int32)}), r"state.obs is float32\[2\] .* int32\[2\]"),
        (task(step=lambda s: {"info": jnp.zeros(4)}), r"state.info is missing after reset"),
        (task(step=lambda s: {"obs": s.obs @ jnp.ones(3)}), r"step fails with TypeError: .*test_checking.py, line"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_named(env, said):
    with pytest.raises(UserError, match=said) as told:
        check_task(env, "mine")
    assert "\n" not in str(told.value) and "task mine" in str(told.value)


@pytest.mark.parametrize("env", [Countdown(), Chancy(), Fragile()])
def test_tasks_that_keep_it_pass(env):
    check_task(env, "mine")


def test_training_looks_first(small_run):
    from jaxrl.population import Population

    envs.register("crooked", type(task(observation_spec=ArraySpec((3,)))))
    with pytest.raises(UserError, match="task crooked: reset: obs has the shape"):
        Population(small_run({"env": {"name": "crooked"}}))


@dataclasses.dataclass(frozen=True)
class Alike(Countdown):
    """Each start is the same."""

    def reset(self, key):
        return super().reset(jax.random.key(0))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (Stillborn(), "starts are not finite"),
        (Fragile(), "steps were not finite"),
        (Absurd(), "beyond 1e6"),
        (Alike(), "all starts are equal"),
        (Countdown(), "all rewards are the same"),
    ],
)
def test_what_looks_wrong_is_said(env, said):
    lines = check.check(env, "mine")
    assert any(line.startswith("warning") and said in line for line in lines), lines


def test_the_command_tells_of_a_task(capsys):
    assert check.main(["pendulum"]) == 0
    out = capsys.readouterr().out
    assert "observation: array (3,); action: 1 components" in out
    assert "microseconds" in out and "pendulum: no problems found" in out


def test_gymnasiums_own_checker_looks_at_its_tasks(capsys):
    assert check.main(["gym:tests.gym_envs:Walk"]) == 0
    assert "gym:tests.gym_envs:Walk" in capsys.readouterr().out
