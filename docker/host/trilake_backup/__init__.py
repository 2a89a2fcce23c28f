"""Backup, restore and restore drill of vps_1: root's programs on the host. They need Python, Docker and restic, and no
service of the platform: a backup has to run when Airflow is down, and Airflow must not have these rights.

A run makes these snapshots in the restic repository, in this order. All have the tag ``run=<time>``:

``postgres``
    the volume `wal`: base backups and WAL of both PostgreSQL servers, and `facts.json`. The tag ``until=<seconds>``
    says up to which time it can be restored.
``pki``, ``settings``, ``kubernetes``, ``bundle``
    the VPN's authority, the host's `.env`, the kubeconfig of vps_2, the versions of the DAGs.
``s3``
    the volume of S3. It comes last, so it has every file that the catalog in `postgres` names: files are written once.
"""
