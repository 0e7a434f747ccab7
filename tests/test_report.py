"""Pages of one run and of several: statistics, groups, what the reader gets to see."""

import csv
import json
import math
import os
import re
import sys

import numpy as np
import pytest
import yaml

from jaxrl.commands import evaluate, plot, report
from jaxrl.config import write_yaml
from jaxrl.errors import UserError
from jaxrl.reporting import overlay, run_page
from jaxrl.reporting.members import grouped, is_population, read_members
from jaxrl.reporting.pages import CURVES
from jaxrl.reporting.reading import COLUMNS, read_rows
from jaxrl.reporting.statistics import GRID, aggregate, iqm, iqm_interval

BASE = {
    "env": {"name": "countdown", "length": 10},
    "algo": "ppo",
    "num_envs": 8,
    "seed": 0,
    "log": {"console": True},
    "ppo": {"learning_rate": 1e-3, "network": {"policy_hidden": [64, 64]}},
}


def write_run(folder, rows=10, *, final=None, nan_from=None, scale=1.0, **changes):
    """A run as training leaves it: `rows` rows, 100 steps and 2 seconds each."""
    (folder / "eval").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    config = {**BASE, **{k: v for k, v in changes.items() if k != "lr"}}
    if "lr" in changes:
        config["ppo"] = {**BASE["ppo"], "learning_rate": changes["lr"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    table = []
    for i in range(1, rows + 1):
        lost = nan_from is not None and i >= nan_from
        row = {"time/total_timesteps": 100 * i, "time/time_elapsed": 2 * i, "time/fps": 50}
        row |= {"rollout/ep_rew_mean": scale * i, "train/loss": "" if lost else 1 / i}
        judged = i % 2 == 0 and not lost
        row |= {"eval/mean_reward": 2 * scale * i if judged else ""}
        table.append(row | {"eval/success_rate": i / 20 if judged else ""})
    with (folder / "progress.csv").open("w", newline="") as file:
        names = "time/total_timesteps time/time_elapsed time/fps rollout/ep_rew_mean train/loss "
        names += "eval/mean_reward eval/success_rate"
        writer = csv.DictWriter(file, names.split())
        writer.writeheader()
        writer.writerows(table)
    if final is not None:
        summary = {"return": {"mean": final}, "success": {"mean": 0.5}}
        (folder / "eval" / "final.json").write_text(
            json.dumps({"episodes": 100, "summary": summary})
        )
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two learning rates, three seeds; one member is shorter, one diverges."""
    members = tmp_path / "sweep" / "members"
    (tmp_path / "sweep" / "checkpoints").mkdir(parents=True)
    for seed in range(3):
        write_run(members / f"learning_rate=0.001,seed={seed}", final=100.0 + seed, seed=seed)
        write_run(
            members / f"learning_rate=1e-05,seed={seed}",
            6 if seed == 1 else 10,
            nan_from=8 if seed == 2 else None,
            scale=1 + seed,
            seed=seed,
            lr=1e-5,
        )
    return tmp_path / "sweep"


def plain_iqm(values):
    values = sorted(values)
    cut = len(values) // 4
    kept = values[cut : len(values) - cut]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_iqm_is_the_mean_of_the_middle_half(count):
    values = np.random.default_rng(count).normal(size=(count, 3))
    expected = [plain_iqm(values[:, i]) for i in range(3)]
    np.testing.assert_allclose(iqm(values), expected, rtol=1e-12)


def test_the_interval_is_the_percentile_bootstrap_of_the_iqm():
    values = np.random.default_rng(0).normal(10, 2, size=9)
    rng = np.random.default_rng(1)
    resampled = [plain_iqm(rng.choice(values, 9)) for _ in range(20_000)]
    middle, low, high = iqm_interval(values)
    assert middle == pytest.approx(plain_iqm(values), rel=1e-12)
    assert [low, high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=0.1)
    single = iqm_interval(np.array([[3.0, 4.0]]))
    assert single[0].tolist() == [3, 4] and np.isnan(single[1:]).all()


def test_aggregated_curves_start_with_all_and_end_with_half():
    curves = [
        np.array([[0, 10, 40], [0, 10, 40]], float),
        np.array([[5, 20, 30], [5, 20, 30]], float) + [[0], [2]],
        np.array([[0, 20], [4, 24]], float),
    ]
    grid, count, (middle, low, high) = aggregate(curves)
    assert grid.tolist() == [5, 10, 20, 30]  # from the last start to the second end of three
    assert count.tolist() == [3, 3, 3, 2]
    np.testing.assert_allclose(middle, [7, 12, 22, 31])
    assert (low <= middle).all() and (middle <= high).all()
    long = np.stack([np.arange(1000.0), np.ones(1000)])
    assert len(aggregate([long])[0]) == GRID and np.isnan(aggregate([long])[2][1:]).all()
    apart = [np.array([[start, start + 1], [1, 1]], float) for start in (0, 0, 9)]
    assert len(aggregate(apart)[0]) == 0


def labels(tmp_path, *configs):
    runs = [write_run(tmp_path / str(i), **config) for i, config in enumerate(configs)]
    return [(group.label, len(group.members)) for group in grouped(read_members(runs))]


def test_groups_are_named_by_what_differs(tmp_path):
    a, b = {"lr": 1e-3}, {"lr": 3e-4, "log": {"console": False}}
    assert labels(tmp_path, {"seed": 3}, {"seed": 4}) == [("2 seeds", 2)]
    assert labels(tmp_path / "1", a, b, {"lr": 1e-3, "seed": 1}) == [
        ("ppo.learning_rate=0.0003", 1),
        ("ppo.learning_rate=0.001", 2),
    ]
    assert labels(tmp_path / "2", a, {"lr": 1e-4, "num_envs": 16}, {"num_envs": 16}) == [
        ("num_envs=8, ppo.learning_rate=0.001", 1),
        ("num_envs=16, ppo.learning_rate=0.0001", 1),
        ("num_envs=16, ppo.learning_rate=0.001", 1),
    ]


def test_settings_of_other_algorithms_and_tasks_stay_out_of_the_label(tmp_path):
    sac = {"algo": "sac", "sac": {"tau": 0.005}, "lr": 7.0}  # ppo's settings are not in use
    other = {"env": {"name": "fragile", "length": 20}}
    assert labels(tmp_path, {}, sac, sac | {"sac": {"tau": 0.01}}) == [
        ("algo=ppo", 1),
        ("algo=sac, sac.tau=0.005", 1),
        ("algo=sac, sac.tau=0.01", 1),
    ]
    assert labels(tmp_path / "1", {}, other) == [("env.name=countdown", 1), ("env.name=fragile", 1)]
    older = {"ppo": {"learning_rate": 1e-3}}  # from before a setting was there
    name = "ppo.network.policy_hidden"
    assert labels(tmp_path / "2", {}, older) == [(f"no {name}", 1), (f"{name}=[64,64]", 1)]


def test_a_population_is_overlaid(sweep, capsys):
    assert is_population(sweep)
    assert report.main([str(sweep)]) == 0
    page = (sweep / "report.html").read_text()
    assert f"written to {sweep / 'report.html'}" in capsys.readouterr().out
    assert "6 members in 2 groups" in page and "data:image/png;base64," in page
    text = re.sub(r"<[^>]+>", " ", page)
    assert "ppo.learning_rate=1e-05" in text and "ppo.learning_rate=0.001" in text
    assert "101 [100, 102]" in text  # final.json
    assert "3 (1 diverged, 1 ended early)" in text
    assert "diverged at 800 steps" in text and "ended at 600 of 1,000 steps" in text
    assert re.search(
        r"=1e-05,seed=2 +ppo.learning_rate=1e-05 +2 +36\* +0.3\*", text
    )  # row 6, 2 * 3 * 6
    assert "the last evaluation in training" in text
    assert "num_envs: 8" in text and "learning_rate:" not in text and "console" not in text
    assert not re.search(r"(src|href)=.https?://", page)


def test_a_diverged_member_is_drawn_only_up_to_there(sweep):
    slow, _ = grouped(read_members([sweep]))
    lost = slow.members[2]
    assert lost.diverged == 800
    assert lost.curve("rollout/ep_rew_mean")[0].max() == 700
    assert [slow.status(m) == "" for m in slow.members] == [True, False, False]


def test_a_group_may_diverge_at_once(tmp_path):
    runs = [write_run(tmp_path / str(i), nan_from=1, seed=i) for i in range(2)]
    assert "2 (2 diverged)" in overlay.page(runs)
    bare = "time/total_timesteps,time/time_elapsed\n100,2\n"
    (runs[0] / "progress.csv").write_text(bare)
    assert "no finite number" in run_page.page(runs[0])


def test_several_runs_go_to_the_folder_one_stands_in(sweep, tmp_path, monkeypatch, undrawn):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", seed=5)
    monkeypatch.chdir(tmp_path)
    assert report.main([str(one), str(two), str(sweep)]) == 0
    text = re.sub(r"<[^>]+>", " ", (tmp_path / "report.html").read_text())
    assert "3 runs compared" in text and "8 members in 2 groups" in text
    assert "sweep/members/learning_rate=1e-05,seed=0" in text
    assert report.main([str(two), str(two)]) == 0  # the same run twice is one run
    assert (two / "report.html").is_file()
    before = (tmp_path / "report.html").read_text()
    assert report.main([str(one), str(two)]) == 0  # another page, in another file
    (one / "checkpoints").rmdir()  # a run that came from elsewhere
    assert report.main([str(one)]) == 0
    made = {path.name for path in tmp_path.glob("*.html")}
    assert made == {"report.html", "report-2.html", "report-3.html"}
    assert (tmp_path / "report.html").read_text() == before and not (one / "report.html").exists()


def test_members_without_rows_are_shown(sweep, undrawn):
    empty = write_run(sweep / "members" / "learning_rate=0.001,seed=7", rows=0, seed=7)
    assert "no rows" in overlay.page([sweep])
    (empty / "progress.csv").unlink()
    assert "no rows" in overlay.page([sweep])


@pytest.mark.parametrize("counts", [(7, 1), (4, 3), (9, 1), (2, 3, 2)])
def test_each_group_looks_different(tmp_path, counts):
    runs = []
    for place in np.ndindex(*counts):
        settings = {f"setting_{i}": int(value) for i, value in enumerate(place)}
        runs.append(write_run(tmp_path / f"{place}", ppo=settings))
    looks = [(s.colour, s.dashes) for s in overlay.styles(grouped(read_members(runs)))]
    assert len(set(looks)) == math.prod(counts)


def test_curves_of_every_algorithm_have_a_place():
    names = {name for panel in CURVES for name in panel.columns}
    assert names >= {
        "train/value_loss",
        "train/policy_gradient_loss",
        "train/critic_loss",
        "train/actor_loss",
        "train/ent_coef",
        "train/ent_coef_loss",
        "train/q_value",
    }


def test_baselines_stand_beside_the_policy(tmp_path, undrawn):
    run = write_run(tmp_path / "run")
    judged = {"return": {"mean": 321.5}, "success": {"mean": 0.75}, "length": {"mean": 200.0}}
    text = json.dumps({"task": "t", "baselines": {"scripted": judged}})
    (run / "eval" / "baselines.json").write_text(text)
    page = re.sub(r"<[^>]+>", " ", run_page.page(run))
    assert re.search(
        r"Baselines .means. +return +success +length +scripted +321.5 +0.75 +200", page
    )


def test_baselines_of_a_run_are_judged_with_its_settings(tmp_path, small_run):
    write_yaml(small_run({"env": {"ends_at": 3}}), tmp_path / "config.yaml")
    (tmp_path / "checkpoints").mkdir()
    assert evaluate.main(["--baselines", str(tmp_path), "--episodes", "4"]) == 0
    written = json.loads((tmp_path / "eval" / "baselines.json").read_text())["baselines"]
    assert set(written) == {"zero", "random"} and written["zero"]["length"]["mean"] == 3


def test_a_row_cut_short_is_left_out(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("time/total_timesteps,train/loss,time/fps\n1,,3\n2,0.5\n")
    (row,) = read_rows(path)
    assert row["time/fps"] == 3 and math.isnan(row["train/loss"])


def test_what_is_no_run_is_refused(tmp_path):
    run, empty = write_run(tmp_path / "run"), tmp_path / "empty"
    (empty / "members").mkdir(parents=True)
    for argv, message in [
        ([], "expected the folder of at least one run"),
        ([tmp_path], "not a run's folder .it has no config.yaml"),
        ([tmp_path / "nowhere"], "nowhere: not a run's folder"),
        ([run, tmp_path], "not a run's folder"),
        ([empty], "a population without members"),
        ([run, "--out", "/proc/page.html"], "cannot write /proc/page.html"),
        ([run, "--out", tmp_path], "cannot write .*: Is a directory"),
    ]:
        with pytest.raises(UserError, match=message):
            report.main([str(word) for word in argv])
    (run / "progress.csv").write_text("time/total_timesteps\n")
    for argv in ([run], [run, write_run(tmp_path / "other", rows=0)]):
        with pytest.raises(UserError, match="no rows yet"):
            report.main([str(word) for word in argv])


# -- what a page shows ----------------------------------------------------------------


def add_columns(run, **columns):
    """More columns in all rows of a run's progress.csv."""
    rows = list(csv.DictReader((run / "progress.csv").open()))
    with (run / "progress.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *columns])
        writer.writeheader()
        writer.writerows([row | columns for row in rows])


def text_of(page):
    return re.sub(r" +", " ", re.sub(r"<[^>]+>", " ", page))


OWN = {"rollout/final/height": 2, "eval/final/height": 3, "rollout/reward/upright": 1}
OTHERS = {"train/learning_rate": 1e-3, "rollout/nan_resets": 0}


@pytest.fixture
def figures(monkeypatch):
    """Axes of all panels that are drawn from here on, by the text of the picture."""
    drawn = {}

    def keep(figure, alt):
        drawn[alt] = figure.axes[0]
        return ""

    monkeypatch.setattr(run_page, "image", keep)
    monkeypatch.setattr(overlay, "image", keep)
    return drawn


def test_every_column_has_a_panel(tmp_path, figures):
    run = write_run(tmp_path / "run", 2)
    add_columns(run, **OWN, **OTHERS)
    for runs in ([run], [run, write_run(tmp_path / "other", 2)]):
        figures.clear()
        page = overlay.page(runs) if runs[1:] else run_page.page(run)
        drawn = " ".join(figures)
        assert not [name for name in [*OWN, *OTHERS] if name not in drawn]
        assert "name='viewport'" in page
        for heading in ("task's own metrics", "Terms of the reward", "All other columns"):
            assert heading in page


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without pictures, which take their time."""
    monkeypatch.setattr(run_page, "_panel", lambda *args: "")
    monkeypatch.setattr(overlay, "_figure", lambda *args: "")


def test_axes_have_names_and_single_points_are_visible(tmp_path, figures):
    runs = [write_run(tmp_path / str(i), 2, seed=i, scale=1 + i) for i in range(2)]  # judged once
    run_page.page(runs[0])
    overlay.page(runs)
    assert len(figures) == 7
    for alt, axis in figures.items():
        assert axis.get_xlabel() in ("control steps", "wall-clock seconds"), alt
        assert axis.get_ylabel(), alt
    for alt in (
        "Return (rollout/ep_rew_mean, eval/mean_reward)",
        "Return: evaluation (eval/mean_reward)",
    ):
        single = [line for line in figures[alt].lines if len(line.get_xdata()) == 1]
        assert single and any(line.get_marker() not in ("None", "") for line in single), alt


def test_the_headline_says_what_came_out(tmp_path, undrawn):
    run = write_run(tmp_path / "run", 10, final=123.4)
    line = re.search(r"<p class='headline'>(.*?)</p>", run_page.page(run))[1]
    assert line == (
        "PPO on countdown: the best model, over 100 episodes, succeeds in 50 % and has a mean "
        "return of 123.4, after 1,000 control steps in 0.33 minutes."
    )
    (run / "eval" / "final.json").unlink()
    assert "the last evaluation in training succeeds in 50 % and has a mean return of 20" in (
        run_page.page(run)
    )
    pair = [run, write_run(tmp_path / "other", 10, final=7.0, lr=1e-4)]
    line = re.search(r"<p class='headline'>(.*?)</p>", overlay.page(pair))[1]
    assert line.startswith("PPO on countdown, 2 members in 2 groups: the best group, ppo.learning_")
    assert (
        text_of(overlay.page(pair)).count("ppo.learning_rate=0.001 ") == 3
    )  # legend and two tables


def summary(**means):
    return {name: dict.fromkeys(COLUMNS, mean) for name, mean in means.items()}


def test_evaluations_with_the_same_numbers_share_a_table(tmp_path, undrawn):
    run = write_run(tmp_path / "run", 2)
    first = {"episodes": 100, "seed": 0, "summary": summary(**{"return": 48_600.2})}
    for name in ("best-200", "final", "other"):
        numbers = first | {"summary": summary(length=3.0)} if name == "other" else first
        (run / "eval" / f"{name}.json").write_text(json.dumps(numbers))
    both = {"simulators": {"mjx": first, "mujoco": first | {"summary": summary(length=4.5)}}}
    (run / "eval" / "on.json").write_text(json.dumps(both))
    page = text_of(run_page.page(run))
    assert re.findall(r"Evaluation: ([\w, -]+?) {2}", page.replace(" 100 ep", "  100 ep")) == [
        "final, best-200",
        "on",
        "other",
    ]
    assert "return 48,600 48,600" in page and re.search(
        r"mean mjx mujoco return 48,600 .*4.5", page
    )


def test_parts_of_the_run_are_told(tmp_path, capsys, undrawn):
    run = write_run(tmp_path / "run", 2)
    first = {"from_step": 0, "date": "2026-01-02", "command": "python <a>", "commit": None}
    second = first | {"from_step": 48_600, "changed": {"ppo.learning_rate": [0.1, None]}}
    (run / "history.yaml").write_text(yaml.safe_dump([first, second]))
    for page in (run_page.page(run), overlay.page([run, write_run(tmp_path / "other", 2)])):
        assert "Parts of the run" in page and "python &lt;a&gt;" in page
        assert "48,600" in page and "ppo.learning_rate: 0.1 \u2192 null" in page
    assert not capsys.readouterr().err
    for nonsense in (
        "3",
        "[1, 2]",
        "{a: b}",
        "[{from_step: {}, changed: 3, date: [x]}]",
        "[",
        "\0",
    ):
        (run / "history.yaml").write_text(nonsense)
        run_page.page(run)
    assert capsys.readouterr().err.count("history.yaml: ") == 5


# -- files that are none ----------------------------------------------------------------

GARBAGE = [
    b"",
    b"\x00\xff\x89PNG\r\n" * 100,
    b"[" * 1000,
    b"{}",
    b"[1, 2]",
    b"\xef\xbb\xbf1,2\n3",
]
FILES = ("config.yaml", "eval/final.json", "eval/baselines.json", "videos/best.mp4", "history.yaml")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", GARBAGE)
def test_a_file_that_is_none_is_named_and_passed_over(name, content, tmp_path, capsys, undrawn):
    run, other = write_run(tmp_path / "run", 2), write_run(tmp_path / "other", 2, seed=1)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(content)
    assert "Learning curves" in run_page.page(run)
    said = capsys.readouterr().err
    assert "Learning curves" in overlay.page([run, other])
    harmless = (name, content) == ("config.yaml", b"{}")
    lines = said.splitlines()
    assert len(lines) == (0 if harmless else 1)
    assert all(x.startswith("warning: ") and str(run / name) in x for x in lines)


@pytest.mark.parametrize("content", GARBAGE)
def test_a_progress_that_is_none_is_one_line(content, tmp_path, undrawn):
    run, other = write_run(tmp_path / "run", 2), write_run(tmp_path / "other", 2, seed=1)
    (run / "progress.csv").write_bytes(content)
    with pytest.raises(UserError, match="no rows yet"):
        run_page.page(run)
    assert "no rows" in overlay.page([run, other])


def test_rows_among_garbage_are_shown(tmp_path, capsys, undrawn):
    run = write_run(tmp_path / "run", 3)
    lines = (run / "progress.csv").read_bytes().splitlines(keepends=True)
    lines.insert(2, GARBAGE[1])
    (run / "progress.csv").write_bytes(b"".join(lines))
    assert "300 control steps" in run_page.page(run)
    assert "progress.csv: " in capsys.readouterr().err


def test_members_that_are_none_are_passed_over(sweep, capsys, undrawn):
    (sweep / "members" / "stray").mkdir()
    (sweep / "members" / "file").touch()
    damaged = sweep / "members" / "learning_rate=0.001,seed=0" / "config.yaml"
    damaged.write_bytes(GARBAGE[1])
    assert "5 members in 2 groups" in overlay.page([sweep])
    warned = capsys.readouterr().err
    assert str(damaged) in warned and "stray: not a run's folder" in warned
    for path in sweep.glob("members/*/config.yaml"):
        path.unlink()
    with pytest.raises(UserError, match="none of the runs can be read"):
        overlay.page([sweep])


def test_settings_of_odd_types_are_no_error(tmp_path, undrawn):
    odd = {"algo": ["ppo"], "seed": {"a": 1}, "env": [1], "3": {"4": None}, "num_envs": {"x": []}}
    runs = [write_run(tmp_path / "a", 2), write_run(tmp_path / "b", 2)]
    (runs[0] / "config.yaml").write_text(yaml.safe_dump(odd))
    (runs[0] / "progress.csv").write_text("time/total_timesteps\n100\n")  # and no clock
    assert "2 members" in overlay.page(runs) and run_page.page(runs[0])


def test_only_whole_videos_are_shown(tmp_path, capsys, undrawn):
    def box(kind, body=b""):
        return (8 + len(body)).to_bytes(4) + kind + body

    whole = box(b"ftyp", b"isom") + box(b"mdat", b"x" * 99) + box(b"moov")
    run = write_run(tmp_path / "run", 2)
    (run / "videos").mkdir()
    for age, (name, raw) in enumerate({"cut": whole[:-20], "whole": whole, "old": whole}.items()):
        (run / "videos" / f"{name}.mp4").write_bytes(raw)
        os.utime(run / "videos" / f"{name}.mp4", (1000 - age, 1000 - age))
    (run / "videos" / "folder.mp4").mkdir()
    assert "data:video/mp4;base64," in run_page.page(run)
    warned = capsys.readouterr().err
    assert "cut.mp4: not a complete video" in warned and "whole.mp4" not in warned


def test_a_missing_matplotlib_is_said_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'jaxrl\[report\]'"):
        report.main([str(tmp_path)])


# -- pictures --------------------------------------------------------------------------


def test_a_picture_has_a_panel_for_each_column_and_a_line_for_each_group(
    sweep, tmp_path, monkeypatch, capsys
):
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kw: (drawn.append(self), save(self, *args, **kw))
    )
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(sweep)]) == 0
    assert plot.main([str(sweep), "--keys", "loss, eval/mean_reward", "--x", "seconds"]) == 0
    assert capsys.readouterr().out == "written to plot.png\nwritten to plot-2.png\n"
    assert (tmp_path / "plot-2.png").read_bytes().startswith(b"\x89PNG")
    titles = [[axis.get_title(loc="left") for axis in figure.axes] for figure in drawn]
    assert titles == [
        ["Return: training", "Return: evaluation", "Success rate: evaluation"],
        ["train/loss", "Return: evaluation"],
    ]
    axis = drawn[1].axes[1]
    assert axis.get_xlabel() == "wall-clock seconds"
    ends = {float(line.get_xdata()[-1]) for line in axis.lines}
    assert ends == {20.0, 12.0}  # 2 s a row; the diverged and the short member end before
    names = [text.get_text() for text in drawn[1].legends[0].get_texts()]
    assert names == ["ppo.learning_rate=1e-05", "ppo.learning_rate=0.001"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "at least one run"),
        (["--x", "time"], "--x: got 'time', expected steps or seconds"),
        (["--keys", "succes"], "did you mean success?"),
        (["--keys", "velocity"], "no run has finite numbers of 'velocity' (names: the first line"),
        (["--out", "picture.gif"], "unknown kind of picture (known: .png, .svg, .pdf)"),
        (["--out", "."], "unknown kind of picture"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_one_line(arguments, said, tmp_path):
    runs = [str(write_run(tmp_path / "run"))] if arguments else []
    with pytest.raises(UserError, match=re.escape(said)):
        plot.main([*runs, *arguments])


def test_a_picture_of_a_file_without_permission_is_one_line(tmp_path, monkeypatch):
    from jaxrl.reporting import members

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(members, "read_rows", refused)
    with pytest.raises(UserError, match=r"cannot read .*progress.csv: Permission denied"):
        plot.main([str(write_run(tmp_path / "run"))])
