#!/bin/sh
# Puts an overlay of k8s/ on vps_2's Kubernetes, waits until spark-operator takes applications, and writes the kubeconfig
# that Airflow gets: the token of its account and the cluster's certificate, nothing of the administrator's.
#
#   apply.sh OVERLAY KUBECONFIG_OF_AIRFLOW SERVER
#
# KUBECONFIG names the administrator's; OWNER (uid:gid) is whose the written file becomes. Repeatable at any time.
set -eu
overlay=$1 written=$2 server=$3

# Until it goes well, or until there is no more point: what was said last is then shown.
try() {
  what=$1 deadline=$(($(date +%s) + ${PATIENCE_S:-300}))
  shift
  until said=$("$@" 2>&1); do
    if [ "$(date +%s)" -ge "$deadline" ]; then
      echo "$what, even after ${PATIENCE_S:-300} s: $said" >&2
      exit 1
    fi
    sleep 2
  done
}

# spark-operator's webhook refuses everything while it is down
takes_applications() {
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
try "spark-operator does not take applications" takes_applications
echo "spark-operator takes applications"
try "Kubernetes has made no token for the account airflow" has_token

# asked for before anything is written: in the file's text a kubectl that fails would go unnoticed
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
