"""The front door."""

import subprocess
import sys

import numpy as np
import pytest

import jaxrl
from jaxrl.errors import UserError
from tests.toys import Countdown

SMALL = {
    "num_envs": 8,
    "total_timesteps": 512,
    "chunk": 2,
    "ppo": {"num_steps": 8, "network": {"policy_hidden": [8], "value_hidden": [8]}},
    "eval": {"every": 128, "episodes": 4, "final_episodes": 4},
    "checkpoint": {"every": 128},
    "log": {"tensorboard": False},
    "progress": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("api") / "run")
    return jaxrl.train(Countdown(control_dt=0.2), seed=1, out=out, **SMALL)


def test_a_run_has_its_folder_history_policy_summary_and_report(run):
    assert run.status == 0 and (run.folder / "config.yaml").exists()
    assert run.config.env == Countdown(control_dt=0.2) and run.config.train.seed == 1
    assert list(run.history["time/total_timesteps"]) == [128, 256, 384, 512]
    assert np.isfinite(run.history["eval/mean_reward"]).all()
    assert run.summary["return"]["mean"] == 10.0
    assert "512 control steps" in repr(run) and "<img" in run._repr_html_()
    assert "Learning curves" in run.report().read_text()


def test_a_policy_acts_on_one_observation_or_many(run):
    policy = jaxrl.load(run.folder)
    one = policy(np.array([0.5, 3.0], np.float32))
    many = policy(np.array([[0.5, 3.0], [0.1, 0.0]], np.float32))
    assert one.shape == (1,) and many.shape == (2, 1)
    np.testing.assert_allclose(many[0], one, rtol=1e-5)
    assert policy.observation_spec.shape == (2,) and policy.action_spec.shape == (1,)
    for wrong in (np.zeros(3), np.zeros((2, 2, 2)), {"a": np.zeros(2)}, 1.0):
        with pytest.raises(UserError, match=r"observation: got the shape .*, expected \(2,\)"):
            policy(wrong)
    assert jaxrl.evaluate(policy, episodes=4)["length"]["mean"] == 10
    assert jaxrl.evaluate(run, episodes=4, env={"episode_length": 7})["length"]["mean"] == 7


def test_a_run_goes_on_and_callbacks_log_and_stop_it(run, tmp_path):
    class Watch(jaxrl.Callback):
        seen = []

        def on_chunk(self, trainer, row):
            row["my/number"] = 7.0
            self.seen.append("chunk")

        def on_evaluation(self, trainer, row):
            self.seen.append("evaluation")
            if trainer.progress.timesteps >= 768:
                trainer.stop("enough")

        def on_checkpoint(self, trainer, folder):
            self.seen.append(folder.name)

    watch = Watch()
    again = jaxrl.resume(run, callbacks=[watch], total_timesteps=2048, progress=False)
    assert again.history["time/total_timesteps"][-1] == 768
    assert again.history["my/number"][-1] == 7.0 and np.isnan(again.history["my/number"][0])
    assert watch.seen == ["chunk", "evaluation", "checkpoints"] * 2 + ["checkpoints"]


def test_settings_that_are_wrong_raise(tmp_path):
    for task, settings, pattern in (
        ("balbot", {}, r"unknown task 'balbot'; did you mean 'ballbot'"),
        (Countdown, {"ppo": {"gama": 0.9}}, r"ppo.gama; did you mean ppo.gamma"),
        (Countdown, {"env": {"epsode_length": 3}}, r"env.epsode_length"),
        (dict, {}, r"is not a task"),
    ):
        with pytest.raises(UserError, match=pattern):
            jaxrl.train(task, out=str(tmp_path / "x"), **settings)
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="no such file or folder"):
        jaxrl.load(tmp_path / "nowhere")
    assert jaxrl.make("pendulum", max_torque=3).max_torque == 3 and "ballbot" in jaxrl.tasks()


WITHOUT = """
import sys, numpy as np, jaxrl
assert "jax" not in sys.modules
policy = jaxrl.load(sys.argv[1])
assert policy(np.zeros(policy.observation_spec.shape, np.float32)).shape == (1,)
heavy = {"mujoco", "envs_mjx", "brax", "jaxrl.trainer", "multiprocessing.popen_spawn_posix"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_a_policy_loads_without_worlds_or_trainer(run):
    program = [sys.executable, "-c", WITHOUT, str(run.folder)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
