"""Settings of FabAuthManager that only a file can give. Airflow's setting ``[fab] config_file`` names this file."""

from trilake.platform import airflow_security

SECURITY_MANAGER_CLASS = airflow_security.SecurityManager
