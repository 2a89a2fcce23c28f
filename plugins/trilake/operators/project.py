"""Operators that read files of the project's ``sql/``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperator

from trilake.project import sql_folder

if TYPE_CHECKING:
    from pathlib import Path

    from airflow.sdk import DAG
    from jinja2 import Environment


class ProjectOperator(BaseOperator):
    """An operator whose template files are in the project's ``sql/``. The DAG needs no ``template_searchpath``."""

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
