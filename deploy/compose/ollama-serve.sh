#!/usr/bin/env bash
#
# Ollama with its log in a file, too, where the agent counts requests. What has grown to 50 MB begins anew.

set -euo pipefail

log=${OLLAMA_LOG_FILE:-/var/log/ollama/ollama.log}
: >"$log"
while sleep 60; do
    if (($(stat -c %s "$log") > 50000000)); then : >"$log"; fi
done &
exec ollama serve > >(exec tee -a "$log") 2>&1
