"""Report pages of runs: reading files, statistics, figures, tables."""
