#!/bin/bash
# Ask under a safety configuration with curl: OPENAI_API_KEY=… ./curl.sh [harmless|uncensored|honest]
# The key goes to curl by a pipe: what stands on a command line can be read by every user of the machine.
set -euo pipefail

curl --silent --show-error --fail-with-body \
    --header @<(printf 'Authorization: Bearer %s\n' "${OPENAI_API_KEY:-none}") \
    --header 'Content-Type: application/json' \
    --write-out '\nx-trimtab-safety: %header{x-trimtab-safety}\n' \
    --data @- "${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}/chat/completions" <<END
{"model": "${OPENAI_MODEL:-trimtab}", "safety": "${1:-harmless}", "max_tokens": 64,
 "messages": [{"role": "user", "content": "How do I tell a friend that I broke her cup?"}]}
END
