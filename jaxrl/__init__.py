"""jaxrl: reinforcement learning for simulated robots, compiled end to end with JAX."""

import os as _os

# XLA:CPU gives one thread to each core; on two cores, two batched library calls
# that wait for each other's workers can then stall for ever. Eight threads cost
# nothing and cannot stall. Read when the CPU client starts, so set before JAX does.
_os.environ.setdefault("PJRT_NPROC", "8")

__version__ = "0.1.0"
