"""What `evaluate` refuses, before it plays; where its numbers go; episodes in batches."""

import json
import sys

import jax
import numpy as np
import pytest

from jaxrl import envs, evaluation, video
from jaxrl.commands import evaluate
from jaxrl.commands.evaluate import baselines
from jaxrl.errors import UserError
from jaxrl.evaluation import play, summarize
from jaxrl.files import check_writable, write_text
from jaxrl.runs import is_resumable
from jaxrl.runtime.compiled import CompiledRuntime
from jaxrl.trainer import Trainer
from tests.toys import Countdown


@pytest.fixture
def run(tmp_path, small_run):
    """A trained run on the countdown."""
    Trainer(small_run(), tmp_path / "run").run()
    return tmp_path / "run"


@pytest.fixture
def unplayed(monkeypatch):
    """Fails if any episode is played for its numbers."""
    monkeypatch.setattr(evaluation, "play", lambda *args, **kwargs: pytest.fail("played"))


LONG = "a" * 300


@pytest.mark.parametrize(
    ("argv", "pattern"),
    [
        (["x", "--baselines", "countdown"], "unexpected argument 'x' together with --baselines"),
        (["--baselines", "countdown", "--on", "mujoco"], "--on: cannot be used together"),
        (["--vary", "env.ends_at=3", "--video", "x.mp4"], "--vary: cannot .* together with"),
        (["--vary", "num_envs"], "--vary: got 'num_envs', expected a setting of the task"),
        (["--vary", "env.ends"], "--vary: got 'env.ends', expected a setting of the task"),
        (["--vary", "env.ends_at"], "--vary env.ends_at: needs its values, such as"),
        (["--vary", "env.ends_at=3,x"], "env.ends_at: got 'x'"),
        (["--vary", "env.ends_at=3", "--json", "/proc/x.json"], "--json: cannot write"),
        (
            ["--episodes", "10000000000"],
            "--episodes: got '10000000000', .* from 1 to 4,294,967,295",
        ),
        (["--seed", "9" * 5000], "--seed: got '9+...', expected a whole number"),
        (["--json", "/proc/x.json"], "--json: cannot write /proc/x.json"),
        (["--json", f"{LONG}.json"], "--json: cannot write a+.*: File name too long"),
        (["--json", "."], r"--json: cannot write \.: Is a directory"),
        (["--video", "film"], "--video: got film, expected a file that ends in .mp4"),
        (["--video", "x.mp4"], "--video: Countdown cannot be drawn"),
    ],
)
def test_it_is_refused_before_an_episode_is_played(argv, pattern, unplayed):
    argv = argv if "--baselines" in argv else ["--baselines", "countdown", *argv]
    with pytest.raises(UserError, match=pattern):
        evaluate.main(argv)


def test_more_episodes_than_memory_are_refused(monkeypatch, small_run):
    monkeypatch.setattr(evaluation.platform, "free_bytes", lambda: 10**9)
    with pytest.raises(UserError, match=r"4,000,000,000 episodes take \d+.0 GB, but 1.0 GB are"):
        evaluate.main(["--baselines", "countdown", "--episodes", "4000000000"])


def test_batches_are_the_first_episodes_and_fresh_ones(monkeypatch):
    actor, key = baselines(Countdown())["zero"], jax.random.key(3)

    class Starts(Countdown):
        def step(self, state, action):  # an episode's return says where it started
            new = super().step(state, action)
            return new.replace(reward=new.obs[0])

    names, table = play(Starts(), actor, None, 10, key, max_worlds=4)
    returns = table[:, names.index("return")]
    assert table.shape[0] == 10 and len(np.unique(returns)) == 10
    np.testing.assert_array_equal(table[:4], play(Starts(), actor, None, 4, key)[1])
    monkeypatch.setattr(evaluation.platform, "free_bytes", lambda: 5_000)  # a few worlds
    assert 1 <= Starts().runtime().max_worlds() < 100
    assert play(Starts(), actor, None, 10, key)[1].shape == table.shape


def test_the_interval_of_many_episodes_goes_on_from_that_of_few():
    table = np.random.default_rng(0).normal(5, 2, (evaluation.BOOTSTRAPPED, 1)).astype(np.float32)
    few, many = (summarize(("x",), rows)["x"] for rows in (table[:-1], table))
    for name in ("ci95_low", "ci95_high"):
        assert few[name] == pytest.approx(many[name], abs=0.005)
    assert many["ci95_low"] < many["mean"] < many["ci95_high"]


def test_numbers_go_only_into_runs_of_ones_own(run, tmp_path, capsys):
    argv = [str(run), "--episodes", "4", "--set", "env.control_dt=0.2"]
    assert is_resumable(run) and evaluate.main(argv) == 0
    (written,) = (run / "eval").glob("best-*-env.control_dt=0.2.json")
    assert f"written to {written}" in capsys.readouterr().out
    before = sorted(run.glob("**/*"))
    (run / "checkpoints").rename(tmp_path / "aside")  # as a policy is shipped
    assert not is_resumable(run)
    assert evaluate.main([*argv, "--seed", "1"]) == 0
    assert evaluate.main(["--baselines", str(run), "--episodes", "4"]) == 0
    assert "written" not in capsys.readouterr().out
    assert sorted(run.glob("**/*")) == [p for p in before if "checkpoints" not in str(p)]
    assert evaluate.main([*argv, "--json", str(tmp_path / "new" / "x.json")]) == 0
    assert json.loads((tmp_path / "new" / "x.json").read_text())["episodes"] == 4


def test_a_setting_is_varied(run, tmp_path, capsys):
    """A row for each value; a failure is an early end without success, and not an early end."""
    file = tmp_path / "varied.json"
    argv = ["--vary", "env.ends_at=0,4", "--episodes", "6", "--json", str(file)]
    assert evaluate.main([str(run), *argv]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["success", "failure", "return", "length"]
    assert [line.split() for line in lines[2:4]] == [["0", "0", "0", "10", "10"], ["4", *"1044"]]
    assert json.loads(file.read_text())["rows"]["4"]["summary"]["length"]["mean"] == 4
    assert evaluate.main(["--baselines", "countdown", *argv]) == 0
    assert "4, random" in capsys.readouterr().out
    choices = evaluate._values("env.terrain", envs.env_class("ballbot")())[1]
    assert choices[:2] == ["flat", "simplex"]


def test_a_failure_is_an_early_end_without_success():
    table = np.array([[10, 0.0], [4, 1.0], [4, 0.0], [10, 1.0]])
    assert evaluation.failures(("length", "success"), table, Countdown()) == 0.25
    assert evaluation.failures(("length",), table[:, :1], Countdown()) == 0.5


def test_a_member_of_a_population_is_ones_own(tmp_path):
    member = tmp_path / "members" / "seed=0"
    member.mkdir(parents=True)
    assert not is_resumable(member)
    (tmp_path / "checkpoints").mkdir()
    assert is_resumable(member)


def test_a_file_that_fails_after_the_numbers_is_an_error(capsys):
    with pytest.raises(UserError, match="cannot write /dev/full: No space left"):
        evaluate.main(["--baselines", "countdown", "--episodes", "2", "--json", "/dev/full"])
    assert "return" in capsys.readouterr().out  # the numbers were printed


def test_names_of_results_are_names_of_files():
    assert evaluate._name("best/12", {"env": {"path": "/a/b"}}) == "best-12-env.path=-a-b.json"
    assert evaluate._name("best/12", {}, ["mjx", "mujoco"]) == "best-12-on-mjx-mujoco.json"
    long = [evaluate._name("best/12", {"env": {"text": LONG + end}}) for end in "ab"]
    assert long[0] != long[1] and max(map(len, long)) < 200


def test_a_missing_library_is_said_before_an_episode_is_played(unplayed, monkeypatch, tmp_path):
    film = str(tmp_path / "film.mp4")
    for name in ("imageio.v3", "imageio_ffmpeg"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(UserError, match=r"--video: needs `pip install 'jaxrl\[video\]'`"):
                evaluate.main(["--baselines", "pendulum", "--video", film])
    (tmp_path / "folder.mp4").mkdir()
    for path in ("/proc/film.mp4", f"/tmp/{LONG}.mp4", str(tmp_path / "folder.mp4")):
        monkeypatch.setattr(CompiledRuntime, "film", lambda *args: pytest.fail("filmed"))
        with pytest.raises(UserError, match=r"^--video: cannot write "):
            evaluate.main(["--baselines", "pendulum", "--video", path])


def test_a_film_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    from envs_mjx.pendulum import Pendulum

    path = tmp_path / "film.mp4"
    path.write_text("old")
    monkeypatch.setattr(CompiledRuntime, "film", lambda *args: np.zeros((2, 16, 16, 3), np.uint8))

    class Broken:
        @staticmethod
        def imwrite(part, *args, **kwargs):
            part.write_text("half")
            raise OSError("[Errno 32] Broken pipe\n\nFFMPEG COMMAND: ...")

    monkeypatch.setattr(video, "_imageio", lambda: Broken)
    with pytest.raises(UserError, match=r"^--video: cannot write .*Broken pipe$"):
        video.record(Pendulum(), None, None, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_devices_and_links_are_written_to_and_never_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("")
    link.symlink_to(target)
    write_text(link, "x")
    assert link.is_symlink() and target.read_text() == "x"
    with pytest.raises(UserError, match="No space left"):
        write_text(type(link)("/dev/full"), "x")
    assert not type(link)("/dev/full").is_file()
    check_writable(tmp_path / "new" / "file")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UserError, match="Is a directory"):
        write_text(tmp_path / "new", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "new", "target"]
