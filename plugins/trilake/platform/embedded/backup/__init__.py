"""Backup and restore of the embedded platform: PostgreSQL, S3 and the secrets, in a folder with several backups.

`create` makes a backup while the platform works, `restore` brings one back, `store` is the folder's format. ClickHouse
and Kubernetes need no backup: the ledger and the lake say what ClickHouse has to show.
"""
