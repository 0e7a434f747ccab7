"""Inverse kinematics of arms, one small step at a time.

Source: Wampler 1986, "Manipulator inverse kinematic solutions based on vector formulations
and damped least-squares methods", eq. 14; Siciliano et al. 2009, "Robotics", sec. 3.7.3
(orientation error) and 3.5.1 (null-space motion).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotation_error(wanted: jax.Array, actual: jax.Array) -> jax.Array:
    """[3] rotation vector (world frame) from the actual to the wanted orientation.

    Its direction is exact; its length is sin(angle): zero at 0, largest at 90 deg.

    Args:
      wanted, actual: [3, 3] rotation matrices, frame to world.
    """
    return 0.5 * jnp.cross(actual, wanted, axis=0).sum(axis=1)


def damped_least_squares(
    jacobian: jax.Array,
    error: jax.Array,
    *,
    damping: float = 0.05,
    posture: jax.Array | None = None,
) -> jax.Array:
    """[n] joint motion dq that makes `jacobian @ dq` nearly `error`.

    Args:
      jacobian: [m, n].
      error: [m] wanted motion (m, rad).
      damping: keeps dq small near singular poses (m, rad).
      posture: [n] joint motion that is added in the null space of the Jacobian.
    """
    m = len(jacobian)
    square = jacobian @ jacobian.T + damping**2 * jnp.eye(m)
    # One factor for both right-hand sides.
    solved = jax.scipy.linalg.cho_solve(
        jax.scipy.linalg.cho_factor(square), jnp.concatenate([error[:, None], jacobian], axis=1)
    )
    inverse = jacobian.T @ solved
    dq = inverse[:, 0]
    if posture is not None:
        dq = dq + posture - inverse[:, 1:] @ posture
    return dq
