"""The original tasks on their first simulators, as plain Gymnasium environments."""
