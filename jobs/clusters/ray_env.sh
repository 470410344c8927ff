# The environment of Ray on every node: sourced by the start commands of cluster.yaml and of the files here.
ulimit -n 65536
umask 077

export PATH="$HOME/trimtab/.venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"
export RAY_enable_autoscaler_v2=1 # labels and priorities of node types
export RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1

# The volume that all nodes mount: outputs, the registry, and the cache of models.
export TRIMTAB_HOME=/shared/trimtab HF_HOME=/shared/models

# Serving: HAProxy hands requests straight to the replica. Its files go where nobody else on the node can write; setup_node.sh
# closes its two ports of statistics, which it opens on every address.
export RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING=1
export RAY_SERVE_HAPROXY_INGRESS_REQUEST_ROUTER_TIMEOUT_S=60
export RAY_SERVE_HAPROXY_STATS_PORT=8404 RAY_SERVE_HAPROXY_METRICS_PORT=9101
export RAY_SERVE_HAPROXY_CONFIG_FILE_LOC="$HOME/.haproxy/haproxy.cfg" RAY_SERVE_HAPROXY_SOCKET_PATH="$HOME/.haproxy/admin.sock"
export RAY_SERVE_HAPROXY_SERVER_STATE_BASE="$HOME/.haproxy" RAY_SERVE_HAPROXY_SERVER_STATE_FILE="$HOME/.haproxy/server-state"

# Keys of judges and stores (JUDGE_API_KEY=...), written on the node from the cloud's secret store, mode 600.
if [ -r "$HOME/secrets.env" ]; then
    set -a
    . "$HOME/secrets.env"
    set +a
fi
