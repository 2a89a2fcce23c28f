"""vps_2 on one machine: a Kubernetes API for SparkApplications, and what runs each of them by spark-submit.

It answers what Airflow's Kubernetes hook, operator and asynchronous client ask, and refuses the rest; there are no
nodes, images or networks. Every application is a driver in local mode that outlives this server, so that a killed
server finds its drivers again. ``python -m trilake.platform.embedded.kubernetes --config FILE`` starts it.
"""
