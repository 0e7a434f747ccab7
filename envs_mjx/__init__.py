"""Robot tasks simulated with MuJoCo MJX."""

import jaxrl as _jaxrl  # noqa: F401  sets the CPU thread count before JAX starts
