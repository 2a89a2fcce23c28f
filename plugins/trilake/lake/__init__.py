"""Data sets and the lake. This import is cheap: no Iceberg, no Arrow, no Airflow."""

from trilake.lake.data_set import DataSet, Grain
from trilake.lake.window import Window

__all__ = ["DataSet", "Grain", "Window"]
