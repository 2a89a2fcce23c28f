#!/bin/sh
# Applies an overlay of k8s/ to vps_2's Kubernetes, waits until spark-operator accepts applications, and writes Airflow's
# kubeconfig: the token of its account and the cluster's certificate, without any credentials of the administrator.
#
#   apply.sh OVERLAY KUBECONFIG_OF_AIRFLOW SERVER
#
# KUBECONFIG is the administrator's file. OWNER (uid:gid) becomes the owner of the written file. The script can be run
# again at any time.
set -eu
overlay=$1 written=$2 server=$3

# try WHAT COMMAND...: repeat a command until it succeeds, for at most PATIENCE_S seconds (by default 300). After that,
# print WHAT and the last output, and exit.
try() {
  what=$1 deadline=$(($(date +%s) + ${PATIENCE_S:-300}))
  shift
  until output=$("$@" 2>&1); do
    if [ "$(date +%s)" -ge "$deadline" ]; then
      echo "$what, even after ${PATIENCE_S:-300} s: $output" >&2
      exit 1
    fi
    sleep 2
  done
}

# spark-operator's webhook refuses everything while it is down
accepts_applications() {
  kubectl --namespace spark create --dry-run=server --filename - <<'APPLICATION'
apiVersion: sparkoperator.k8s.io/v1beta2
kind: SparkApplication
metadata: {name: is-the-webhook-up}
spec:
  type: Python
  mode: cluster
  image: trilake/spark:4.1.4
  mainApplicationFile: local:///opt/trilake/run_job.py
  sparkVersion: 4.1.4
  driver: {cores: 1, memory: 512m, serviceAccount: spark}
  executor: {cores: 1, memory: 512m, instances: 1}
APPLICATION
}

has_token() {
  [ -n "$(of_token .data.token)" ] && [ -n "$(of_token '(index .data "ca.crt")')" ]
}

of_token() {
  kubectl --namespace spark get secret airflow-token --output "go-template={{with $1}}{{.}}{{end}}"
}

try "The Kubernetes API does not answer" kubectl get --raw /readyz
try "$overlay was not accepted" kubectl apply --kustomize "$overlay"
echo "applied $overlay"
try "spark-operator does not accept applications" accepts_applications
echo "spark-operator accepts applications"
try "Kubernetes has not made a token for the account airflow" has_token

# These are read before the file is written: a kubectl that fails inside the file's text would not stop the script.
token=$(of_token '(.data.token | base64decode)')
authority=$(of_token '(index .data "ca.crt")')
[ -n "$token" ] && [ -n "$authority" ] || { echo "Kubernetes gave no token for the account airflow" >&2; exit 1; }

mkdir -p "$(dirname "$written")"
umask 077
cat >"$written.part" <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
  - name: vps-2
    cluster:
      server: $server
      certificate-authority-data: $authority
users:
  - name: airflow
    user:
      token: $token
contexts:
  - name: airflow
    context: {cluster: vps-2, user: airflow, namespace: spark}
current-context: airflow
KUBECONFIG
[ -z "${OWNER:-}" ] || chown "$OWNER" "$written.part"
mv "$written.part" "$written"
echo "wrote $written"
