"""Transfer: a run that begins with the networks of another run (`init_from`).

What the old and the new policy observe and do is matched by the names of the components. A new
component begins with the weight 0, so that the new policy at first acts as the old one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.task import ArraySpec
from jaxrl.errors import UserError
from jaxrl.nets.encoders import ENCODERS
from jaxrl.policy import Policy, PolicyState
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
    "distribution",
    "state_dependent_std",
)
# Samples that the statistics of observations remember if some components are new; so that those of
# the new components become right within about as many control steps.
REMEMBERED = 1e5


def start_from(
    path: str, policy: Policy, state: PolicyState, *, members: bool
) -> tuple[PolicyState, str]:
    """The state of a new run's policy, with the networks and statistics of another run; and one
    line that says what is new.

    Weights that the other run does not have stay as they are; the standard deviation of the actions
    does too.

    Args:
      path: a run, a checkpoint, or a policy of the project.
      policy: the new run's policy.
      state: its state at the start.
      members: whether the leaves of the state begin with the axis of a population's members.

    Raises:
      UserError: there is no policy, or it does not fit.
    """
    trained = load_policy(Path(path))
    transfer = _Transfer(path, trained, policy)
    apply = jax.vmap(transfer.apply) if members else transfer.apply
    return jax.jit(apply)(state), transfer.summary()


def check(name: str, old: Policy, new: Policy) -> None:
    """Checks that a run can begin with the networks of another policy.

    Args:
      name: name or path of the other policy, for messages.
      old: the other policy.
      new: the run's own policy.

    Raises:
      UserError: it cannot.
    """
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
    def __init__(self, path: str, trained: TrainedPolicy, policy: Policy):
        check(path, trained.policy, policy)
        self.path, self.old, self.new = path, trained.policy, policy
        self.params = trained.params
        self.actions = _actions(policy, trained.policy)
        self.changed: list[str] = []  # parts of the networks that are new

    def apply(self, state: PolicyState) -> PolicyState:
        """The new policy's state; one member."""
        old = dict(jax.tree_util.tree_leaves_with_path(self.params.params))
        self.changed = []

        def leaf(path: Any, new: jax.Array) -> jax.Array:
            keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            network, layer = keys[1], keys[1:-1]
            if network == "log_std":
                return new
            if path not in old:
                self.changed.append("/".join(layer))
                return new
            values = jnp.asarray(old[path])
            if layer[1:] == ["Dense_0"] and network.endswith("_trunk") and keys[-1] == "kernel":
                owner = network.removesuffix("_trunk")
                to, where = _match(self._features(self.new, owner), self._features(self.old, owner))
                return jnp.zeros_like(new).at[to].set(values[where])
            if network in ("mean_head", "std_head"):
                to, where = self.actions
                return new.at[..., to].set(values[..., where])
            if values.shape != new.shape:
                self.changed.append("/".join(layer))
                return new
            return values

        params = jax.tree_util.tree_map_with_path(leaf, state.params)
        return state.replace(params=params, normalizer=self._statistics(state))

    def _statistics(self, state: PolicyState) -> Any:
        """Statistics of the new policy's observations: those of the old one, by name."""
        old, new = self.params.normalizer, state.normalizer
        known: dict[str, tuple[Any, Any]] = {}
        for part, names in _vectors(self.old).items():
            mean, variance = (
                x[part] if isinstance(x, dict) else x for x in (old.mean, old.variance)
            )
            pairs = zip(np.ravel(mean), np.ravel(variance), strict=True)
            known |= dict(zip(names, pairs, strict=True))
        if not self.new.normalizes or not known:
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
                flat = parts[part].ravel().at[np.array(rows, int)].set(values)
                result[part] = flat.reshape(parts[part].shape)
            return result if isinstance(tree, dict) else next(iter(result.values()))

        mean, variance = matched(0, new.mean), matched(1, new.variance)
        count = jnp.minimum(old.count, REMEMBERED) if missing else jnp.asarray(old.count)
        return new.replace(count=count, mean=mean, variance=variance)

    def _features(self, policy: Policy, owner: str) -> list[str]:
        """Names of the inputs of a trunk, "policy" or "value"."""
        c = policy.config
        keys = vars(c)[f"{owner}_keys"] or sorted(policy.parts)
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
        return names

    def summary(self) -> str:
        """What is new, as one line."""
        names = [name for part in _vectors(self.new).values() for name in part]
        images = [part for part, spec in self.new.parts.items() if spec.is_image]
        old = {name for part in _vectors(self.old).values() for name in part} | set(self.old.parts)
        new = [name for name in (*names, *images) if name not in old]
        parts = [*_grouped(new), *dict.fromkeys(part for part in self.changed if part)]
        said = f"new: {', '.join(parts)}" if parts else "nothing is new"
        return f"begins with the networks of {self.path}; {said}"


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
