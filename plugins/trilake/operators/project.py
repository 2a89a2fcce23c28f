"""Where a DAG's project lies: its ``sql/`` beside its ``dags/``, in whichever bundle version the run has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import BaseOperator

from trilake.errors import ConfigurationError

if TYPE_CHECKING:
    from airflow.sdk import DAG
    from jinja2 import Environment


def sql_folder(dag_file: str) -> Path:
    """:raises ConfigurationError: no folder above the DAG's file has a ``sql/``."""
    for folder in Path(dag_file).resolve().parents:
        if (folder / "sql").is_dir():
            return folder / "sql"
    raise ConfigurationError(f"There is no sql/ beside the folder of {dag_file}.")


class ProjectOperator(BaseOperator):
    """An operator whose templates are looked up below the project's ``sql/``, without a word in the DAG."""

    @property
    def sql_folder(self) -> Path:
        """The project's ``sql/``."""
        return sql_folder(self.dag.fileloc)

    def get_template_env(self, dag: DAG | None = None) -> Environment:
        import jinja2

        environment = super().get_template_env(dag)
        file = (dag or self.dag).fileloc
        own = jinja2.FileSystemLoader(str(sql_folder(file)))
        environment.loader = jinja2.ChoiceLoader([own, environment.loader]) if environment.loader else own
        return environment
