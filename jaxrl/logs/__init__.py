"""Where numbers go: CSV, TensorBoard, Weights & Biases, the console."""

from jaxrl.logs.console import Console
from jaxrl.logs.sinks import CSVSink, Sink, TensorBoardSink, WandbSink

__all__ = ["CSVSink", "Console", "Sink", "TensorBoardSink", "WandbSink"]
