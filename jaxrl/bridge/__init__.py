"""Environments written for other libraries, as tasks. Each library has one module here, and
is imported only when one of its environments is asked for."""
