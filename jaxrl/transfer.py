"""Transfer: a run that begins with parts of another run (`init_from`, `init_parts`).

What the old and the new policy observe and do is matched by the names of the components. A new
component begins with the weight 0, so that the new policy at first acts as the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import assets, storage
from jaxrl.algos.base import Algorithm, TrainState
from jaxrl.checkpoint import Checkpointer
from jaxrl.envs.task import ArraySpec
from jaxrl.errors import UserError
from jaxrl.nets.encoders import ENCODERS
from jaxrl.policy import Policy
from jaxrl.runs import TrainedPolicy, load_policy

# Settings of the networks that both runs must share.
SHARED = (
    "policy_hidden",
    "value_hidden",
    "activation",
    "layer_norm",
    "shared_trunk",
    "memory",
    "memory_size",
    "groups",
    "distribution",
    "state_dependent_std",
)
CRITICS = ("critic", "target", "critic_opt")  # fields of a training state that are of the critics
ADAM = ("mu", "nu", "count")  # fields of an optimiser's state
TRUNKS = (["policy_trunk", "Dense_0"], ["value_trunk", "Dense_0"])  # layers that read observations
CRITIC = ["MLP_0", "Dense_0"]
# Samples that the statistics of observations remember if some components are new; so that those of
# the new components become right within about as many control steps.
REMEMBERED = 1e5


def start_from(
    path: str, algorithm: Algorithm, state: TrainState, parts: Sequence[str], *, members: bool
) -> tuple[TrainState, str]:
    """The training state of a new run, with parts of another run; and one line that says what is
    new.

    What the other run does not have stays as it is.

    Args:
      path: a run, a checkpoint, or a policy of the project.
      algorithm: the new run's algorithm.
      state: its training state at the start.
      parts: the parts that are carried over, see `TrainConfig.init_parts`.
      members: whether the leaves of the state begin with the axis of a population's members.

    Raises:
      UserError: there is no policy, or it does not fit.
    """
    transfer = _Transfer(path, algorithm, parts, members=members)
    return transfer.apply(state), transfer.summary()


def check(name: str, old: Policy, new: Policy, parts: Sequence[str]) -> None:
    """Checks that a run can begin with parts of another run.

    Args:
      name: name or path of the other policy, for messages.
      old: the other policy.
      new: the run's own policy.
      parts: the parts that are carried over.

    Raises:
      UserError: it cannot.
    """
    if not {"policy", "value"} & {*parts}:
        return
    for setting in SHARED:
        before, now = vars(old.config)[setting], vars(new.config)[setting]
        if before != now:
            raise UserError(
                f"init_from: {name} has network.{setting} {_text(before)}, but this run has "
                f"{_text(now)}; give both the same"
            )
    if not new.config.policy_hidden:
        raise UserError("init_from: needs at least one layer in network.policy_hidden")
    for fact, before, now in (
        ("normalize_observation", old.normalizes, new.normalizes),
        ("discrete actions", old.action.discrete, new.action.discrete),
    ):
        if before != now:
            yes_or_no = {True: "yes", False: "no"}
            raise UserError(
                f"init_from: {fact}: {yes_or_no[before]} in {name}, but {yes_or_no[now]} in this "
                "run; both must be the same"
            )
    if not len(_actions(new, old)[0]):
        raise UserError(f"init_from: {name} has no action with a name of this task's actions")


def _actions(new: Policy, old: Policy) -> tuple[np.ndarray, np.ndarray]:
    """Places of the actions that both policies have, in the new one and in the old one."""
    return _match(_names(new.action, "action"), _names(old.action, "action"))


class _Transfer:
    """Carries parts of a run over to a new one; arguments as for `start_from`."""

    def __init__(self, path: str, algorithm: Algorithm, parts: Sequence[str], *, members: bool):
        self.path, self.parts, self.algorithm = path, parts, algorithm
        self.axes = int(members)  # number of axes before those of a single run
        trained, self.arrays = _load(path, algorithm, "optimizer" in parts)
        self.old, self.new, self.params = trained.policy, algorithm.policy, trained.params
        check(path, self.old, self.new, parts)
        self.actions = _actions(self.new, self.old)
        self.changed: list[str] = []  # modules of the networks that are new

    def apply(self, state: TrainState) -> TrainState:
        """The new run's training state."""
        policy = state.policy.replace(
            params=self._matched(".params", state.policy.params),
            normalizer=self._statistics(state.policy.normalizer),
        )
        if "policy" in self.parts:
            state = self.algorithm.begin_with(state, policy, members=bool(self.axes))
        return state.replace(policy=policy, learner=self._matched(".learner", state.learner))

    def _matched(self, root: str, tree: Any) -> Any:
        """A part of the training state, with the arrays that are carried over."""

        def leaf(path: tuple[Any, ...], new: jax.Array) -> jax.Array:
            attributes = [x.name for x in path if isinstance(x, jax.tree_util.GetAttrKey)]
            keys = [x.key for x in path if isinstance(x, jax.tree_util.DictKey)]
            if not self._is_carried(attributes, keys) or attributes == ["updates"]:
                return new
            old = self.arrays.get(root + jax.tree_util.keystr(path))
            value = None if old is None else self._value(attributes, keys, old, new)
            if value is None and (root == ".params" or attributes[:1] == ["critic"]):
                network = ["critics"] if root == ".learner" else []
                self.changed.append("/".join([*network, *keys[1:-1]]))
            return new if value is None else value

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def _is_carried(self, attributes: list[str], keys: list[str]) -> bool:
        """Whether an array belongs to the parts that are carried over.

        Args:
          attributes: names of the fields on the way to the array.
          keys: keys of the dictionaries on this way, ["params", module, ..., "kernel"].
        """
        network = keys[1] if keys else ""
        of_value = network.startswith("value") or bool({*CRITICS} & {*attributes})
        part = "std" if network.startswith("log_std") else "value" if of_value else "policy"
        wanted = part in self.parts or ("encoder" in network and "encoder" in self.parts)
        return wanted and ("optimizer" in self.parts or not {*ADAM} & {*attributes})

    def _value(
        self, attributes: list[str], keys: list[str], old: np.ndarray, new: jax.Array
    ) -> jax.Array | None:
        """An array of the new run with the values of the old one; None if it does not fit."""
        layer, name = keys[1:-1], keys[-1] if keys else ""
        reads = layer[-2:] in (*TRUNKS, CRITIC) and not self.new.config.groups
        if name == "kernel" and reads:
            owner = layer[-2].removesuffix("_trunk") if layer[-2:] != CRITIC else "critic"
            to, where = _match(self._features(self.new, owner), self._features(self.old, owner))
            return jnp.zeros_like(new).at[..., to, :].set(old[..., where, :])
        if layer and layer[0] in ("mean_head", "std_head"):
            to, where = self.actions
            return new.at[..., to].set(old[..., where])
        if old.shape != new.shape[self.axes :]:
            return None
        return jnp.broadcast_to(old, new.shape)

    def _statistics(self, new: Any) -> Any:
        """Statistics of the new policy's observations: those of the old one, by name."""
        old = self.params.normalizer
        known: dict[str, tuple[Any, Any]] = {}
        for part, names in _vectors(self.old).items():
            mean, variance = (
                x[part] if isinstance(x, dict) else x for x in (old.mean, old.variance)
            )
            pairs = zip(np.ravel(mean), np.ravel(variance), strict=True)
            known |= dict(zip(names, pairs, strict=True))
        if not self.new.normalizes or not known or "normalizer" not in self.parts:
            return new
        missing = False

        def matched(index: int, tree: Any) -> Any:
            nonlocal missing
            parts = tree if isinstance(tree, dict) else dict.fromkeys(_vectors(self.new), tree)
            result = {}
            for part, names in _vectors(self.new).items():
                rows = [i for i, name in enumerate(names) if name in known]
                missing |= len(rows) < len(names)
                values = np.array([known[names[i]][index] for i in rows], np.float32)
                flat = parts[part].reshape(*parts[part].shape[: self.axes], -1)
                flat = flat.at[..., np.array(rows, int)].set(values)
                result[part] = flat.reshape(parts[part].shape)
            return result if isinstance(tree, dict) else next(iter(result.values()))

        mean, variance = matched(0, new.mean), matched(1, new.variance)
        count = jnp.minimum(old.count, REMEMBERED) if missing else jnp.asarray(old.count)
        count = jnp.broadcast_to(count, new.count.shape)
        return new.replace(count=count, mean=mean, variance=variance)

    def _features(self, policy: Policy, owner: str) -> list[str]:
        """Names of the inputs of a trunk, of the "policy", the "value" or the "critic"."""
        c = policy.config
        keys = (c.policy_keys if owner == "policy" else c.value_keys) or sorted(policy.parts)
        names: list[str] = []
        for key in keys:
            spec, encoder = policy.parts[key], policy.encoders[key]
            if encoder == "none":
                names += _names(spec, key)
                continue
            module = ENCODERS[encoder](spec, c)
            sample = jax.ShapeDtypeStruct(spec.shape, spec.dtype)
            shape = jax.eval_shape(module.init_with_output, jax.random.key(0), sample)[0].shape
            # Features are the same only if the whole encoder is.
            facts = (encoder, spec.shape, spec.names, c.image_channels, c.image_features)
            names += [f"{key}/{facts}_{i}" for i in range(shape[-1])]
        return names + (_names(policy.action, "action") if owner == "critic" else [])

    def summary(self) -> str:
        """What is new, as one line."""
        names = [name for part in _vectors(self.new).values() for name in part]
        images = [part for part, spec in self.new.parts.items() if spec.is_image]
        old = {name for part in _vectors(self.old).values() for name in part} | set(self.old.parts)
        new = [name for name in (*names, *images) if name not in old]
        parts = [*_grouped(new), *dict.fromkeys(part for part in self.changed if part)]
        said = f"new: {', '.join(parts)}" if parts else "nothing is new"
        return f"begins with {', '.join(self.parts)} of {self.path}; {said}"


def _load(
    path: str, algorithm: Algorithm, is_required: bool
) -> tuple[TrainedPolicy, dict[str, np.ndarray]]:
    """The other run's policy, and all of its arrays that may be carried over, by their paths.

    Critics and optimisers are in training checkpoints only. If there is one of the same algorithm,
    and the algorithm has more to carry over than the policy, then the policy is that of the newest
    of them; otherwise it is the run's best one.

    Raises:
      UserError: there is no policy, or no optimiser although that is required.
    """
    path = str(storage.local(path))
    wanted = is_required or algorithm.learner_carries_over
    folder = assets.find(Path(path), "checkpoints") / "checkpoints"
    training = folder if folder.is_dir() and wanted else Path(path)
    trained = load_policy(training)
    learner = {}
    if wanted and trained.meta["config"]["algo"] == algorithm.name:
        arrays = _arrays(trained, "train").items()
        learner = {name: array for name, array in arrays if name.startswith(".learner")}
    if is_required and not learner:
        raise UserError(
            f"init_parts: optimizer: {path} has no training state of {algorithm.name}; leave "
            "optimizer out"
        )
    if not learner and training != Path(path):
        trained = load_policy(Path(path))
    return trained, _arrays(trained, "policy") | learner


def _arrays(trained: TrainedPolicy, item: str) -> dict[str, np.ndarray]:
    """The arrays of an item of the policy's checkpoint, by their paths."""
    return Checkpointer(trained.source.parent).arrays(int(trained.source.name), item)


def _vectors(policy: Policy) -> dict[str, list[str]]:
    """Names of the components of each part of the observation that is no image."""
    parts = policy.parts.items()
    return {part: _names(spec, part) for part, spec in parts if not spec.is_image}


def _names(spec: ArraySpec, part: str) -> list[str]:
    """Names of an array's components."""
    if spec.names:
        return list(spec.names)
    return [f"{part}_{i}" for i in range(int(np.prod(spec.shape)))]


def _match(new: list[str], old: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the names that both lists have, in the new one and in the old one."""
    places = {name: i for i, name in enumerate(old)}
    pairs = [(i, places[name]) for i, name in enumerate(new) if name in places]
    to, where = np.array(pairs, int).reshape(-1, 2).T
    return to, where


def _grouped(names: list[str]) -> list[str]:
    """Names without the numbers of their components."""
    return list(dict.fromkeys(name.rstrip("0123456789").rstrip("_") or name for name in names))


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
