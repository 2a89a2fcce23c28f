"""vps_2 on one machine: a Kubernetes API for SparkApplications, and a controller that runs them with spark-submit.

It serves the requests of Airflow's Kubernetes hook, operator and asynchronous client, and refuses others. There are no
nodes, images or networks. Every application is a driver in local mode. A driver outlives this server: if the server
is killed, the next one finds the driver again.

``python -m trilake.platform.embedded.kubernetes --config FILE`` starts the server.
"""
