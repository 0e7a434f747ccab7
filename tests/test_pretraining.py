"""Image encoders: pretraining, collecting images, and what a policy does with its encoder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxrl import platform
from jaxrl.commands import collect, evaluate, pretrain, train
from jaxrl.errors import UserError
from jaxrl.nets.autoencoder import FrozenEncoder
from jaxrl.nets.convolution import Conv
from jaxrl.pretraining import of_shards
from jaxrl.runs import load_policy

TASK = ["--env.sight", "depth", "--env.terrain", "hills", "--env.terrain_count", "2"]
TASK += ["--env.start_tilt", "15"]
SEES = ["--env.name", "ballbot", *TASK]
SMALL = ["--frames", "2048", "--learning_rate", "0.01", "--batch_size", "8"]
SMALL += ["--eval_frames", "16", "--channels", "4,8"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    assert pretrain.main([*SEES, *SMALL, "--code_size", "6", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("shape", [(3, 8, 8, 2), (2, 7, 10, 1), (1, 1, 3, 3)])
@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_a_convolution_is_that_of_flax(shape, target, monkeypatch):
    monkeypatch.setattr(platform, "target", lambda: target)
    x = jax.random.normal(jax.random.key(0), shape)
    flax = nn.Conv(5, (3, 3), strides=2)
    params = flax.init(jax.random.key(1), x)
    ours = Conv(5)
    drawn = ours.init(jax.random.key(1), x)
    np.testing.assert_allclose(ours.apply(params, x), flax.apply(params, x), atol=1e-5)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)
    gradients = [
        jax.grad(lambda p, net=net: (net.apply(p, x) ** 2).sum())(params) for net in (flax, ours)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *gradients)


def test_an_encoder_learns_what_images_show(encoder):
    result = json.loads((encoder / "result.json").read_text())
    assert 0 < result["rmse"] < 0.95 * result["rmse_of_the_mean_image"]
    assert result["images"] == 2048 and "jax" in result["hardware"]
    rows = (encoder / "progress.csv").read_text().splitlines()
    assert rows[0] == "time/total_timesteps,loss,eval/rmse,images_per_second"
    assert rows[-1].startswith("2048,") and list((encoder / "tensorboard").iterdir())
    page = (encoder / "report.html").read_text()
    assert page.count("data:image/png") == 3 and "from jaxrl" not in page
    code = FrozenEncoder.load(encoder)(jnp.zeros((2, 3, 64, 64, 2)))
    assert code.shape == (2, 3, 6) and (jnp.abs(code) <= 1).all()


def test_a_policy_contains_its_encoder(encoder, tmp_path, capsys):
    """It plays and trains on without the encoder's file; the encoder never changes by a bit."""
    run, file = tmp_path / "run", tmp_path / "moved.npz"
    file.write_bytes((encoder / "encoder.npz").read_bytes())
    small = ["--num_envs", "8", "--ppo.num_steps", "8", "--ppo.num_minibatches", "2"]
    small += ["--eval.every", "0", "--eval.final_episodes", "0"]
    small += ["--checkpoint.every", "64", "--log.tensorboard", "false"]
    size = ["--total_timesteps", "128"]
    argv = [*SEES, "--env.encoder", str(file), *small, *size, "--out", str(run)]
    assert train.main(argv) == 0
    file.unlink()
    assert evaluate.main([str(run), "--episodes", "2"]) == 0
    assert train.main(["--resume", str(run), "--total_timesteps", "192"]) == 0
    before = dict(np.load(encoder / "encoder.npz"))
    trained = load_policy(run / "checkpoints")
    assert trained.meta["progress"]["timesteps"] == 192
    assert trained.policy.parts["code"].shape == (6,) and "depth" not in trained.policy.parts
    assert before.keys() == trained.params.constants.keys()
    for name, value in before.items():
        assert value.tobytes() == np.asarray(trained.params.constants[name]).tobytes()
    for command in (
        lambda: evaluate.main([str(run), "--set", "env.encoder=other.npz"]),
        lambda: train.main(["--resume", str(run), "--env.encoder", "other.npz"]),
    ):
        with pytest.raises(
            UserError, match=r"env\.encoder: cannot be changed: its content is part"
        ):
            command()


def test_a_code_is_that_of_the_image(encoder):
    from envs_mjx.ballbot import Ballbot

    raw = Ballbot(sight="depth", terrain="hills", terrain_count=2)
    coded = Ballbot(sight="depth", terrain="hills", terrain_count=2, encoder=str(encoder))
    key = jax.random.key(0)
    image = raw.reset(key).obs["depth"].astype(jnp.float32) / 255
    code = coded.reset(key).obs["code"]
    np.testing.assert_allclose(code, coded._encoder(image), atol=0.05)  # the image is of bytes
    assert coded.observation_spec["code"].shape == code.shape == (6,)


def test_images_are_collected_and_learned(tmp_path, capsys):
    folder = tmp_path / "images"
    argv = ["ballbot", *TASK, "--out", str(folder), "--num_envs", "4", "--every", "2"]
    assert collect.main([*argv, "--frames", "10", "--actor", "lqr"]) == 0
    images, largest = of_shards(folder, (64, 64, 2))
    assert images.shape == (10, 64, 64, 2) and largest == 255 and images.std() > 1
    assert json.loads((folder / "images.json").read_text())["images"] == 10
    with pytest.raises(UserError, match="already holds images"):
        collect.main(argv)
    out = tmp_path / "encoder"
    argv = [*SEES, *SMALL, "--data", str(folder), "--out", str(out), "--frames", "32"]
    assert pretrain.main(argv) == 0
    with pytest.raises(UserError, match="already holds an encoder"):
        pretrain.main(argv)


@pytest.mark.parametrize(
    ("command", "argv", "pattern"),
    [
        (pretrain, ["--env.name", "ballbot"], r"part: got nothing, .* \(it observes: none\)"),
        (pretrain, [*SEES, "--part", "body"], r"part: got body, .* \(it observes: depth\)"),
        (pretrain, [*SEES, "--data", "nowhere"], "data: nowhere holds no images"),
        (pretrain, [*SEES, "--code", "3"], "unknown setting"),
        (pretrain, ["depth.yaml"], "unexpected argument 'depth.yaml'"),
        (collect, ["ballbot"], "expected one task or run, and --out"),
        (collect, ["ballbot", *TASK, "--actor", "x"], "--actor: got 'x', expected one of zero"),
        (collect, ["ballbot"], "part: got nothing, expected an image"),
        (collect, ["ballbot", "--seeds", "3"], "unknown argument --seeds"),
        (train, [*SEES, "--env.encoder", "nowhere"], "nowhere: no such file; python -m jaxrl.pre"),
    ],
)
def test_mistakes_are_named(command, argv, pattern, tmp_path):
    if command is not train and "expected one task" not in pattern:
        argv = [*argv, "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=pattern):
        command.main(argv)


def test_a_file_of_another_kind_is_no_encoder(tmp_path):
    for name, content in (("a.npz", b"PK"), ("b.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: is not an encoder"):
            FrozenEncoder.load(tmp_path / name)
    np.savez(tmp_path / "c.npz", mean=np.zeros(3))
    with pytest.raises(UserError, match=r"c\.npz: is not an encoder"):
        FrozenEncoder.load(tmp_path / "c.npz")
