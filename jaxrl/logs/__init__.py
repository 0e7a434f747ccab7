"""Logging of numbers: CSV files, TensorBoard, Weights & Biases, the console."""

from jaxrl.logs.console import Console
from jaxrl.logs.numbers import readable
from jaxrl.logs.sinks import (
    SINKS,
    CSVSink,
    Sink,
    TensorBoardSink,
    WandbSink,
    known_mean,
    read_csv,
)

__all__ = [
    "SINKS",
    "CSVSink",
    "Console",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "known_mean",
    "read_csv",
    "readable",
]
