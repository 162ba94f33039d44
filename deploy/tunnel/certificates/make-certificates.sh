#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the certificates of cert-manager.yaml with openssl, for a year: two authorities, the server's pair for each, and
# for each tenant those of kube-apiserver, Prometheus and the agent. Run it again for new pairs; the authorities are
# kept, so that the pairs can be exchanged while everything works.
#
#   make-certificates.sh DIRECTORY SERVER-NAME[,NAME…] TENANT…
#
# SERVER-NAME is what clients dial, and what agents dial or name by --proxy-server-name: a DNS name, *.NAME, or an address.
set -euo pipefail

if (($# < 3)); then
    sed -n '7,9s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 1
fi
mkdir -p "$1"
cd "$1"
names=
IFS=, read -ra given <<<"$2"
for name in "${given[@]}"; do
    # Clients that dial an address look for it among the addresses, and for nothing else.
    [[ $name =~ ^[0-9.]+$ || $name == *:* ]] && type=IP || type=DNS
    names+=${names:+,}$type:$name
done
shift 2
days=365
umask 077

log=$(mktemp)
trap 'rm -f "$log"' EXIT

fail() {
    echo "make-certificates.sh: $*: $(<"$log")" >&2
    exit 1
}

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

# authority NAME
authority() {
    if [[ ! -f $1-ca.key ]]; then
        openssl req -x509 "${new_key[@]}" -days $((10 * days)) -subj "/CN=konnectivity-$1" \
            -addext keyUsage=keyCertSign -keyout "$1-ca.key" -out "$1-ca.crt" 2>"$log" ||
            fail "cannot make the authority $1"
    fi
}

# pair AUTHORITY NAME SUBJECT EXTENSIONS
pair() {
    openssl req "${new_key[@]}" -subj "$3" -keyout "$2.key.new" -out "$2.csr" 2>"$log" ||
        fail "cannot make a key and request for $2"
    openssl x509 -req -in "$2.csr" -CA "$1-ca.crt" -CAkey "$1-ca.key" -CAcreateserial -days $days -out "$2.crt.new" \
        -extfile <(printf '%b' "$4") 2>"$log" || fail "cannot sign the certificate of $2 with $1-ca.key"
    # A rename: processes that watch the files never read a part of one.
    mv "$2.key.new" "$2.key"
    mv "$2.crt.new" "$2.crt"
    rm "$2.csr"
    echo "$2.crt: $(openssl x509 -in "$2.crt" -noout -enddate)"
}

authority clients
authority agents
server="subjectAltName=$names\nextendedKeyUsage=serverAuth\n"
client='extendedKeyUsage=clientAuth\n'
pair clients server /CN=konnectivity-server "$server"
pair agents server-for-agents /CN=konnectivity-server "$server"
for tenant; do
    pair clients "$tenant-kube-apiserver" "/O=$tenant/CN=kube-apiserver" "$client"
    pair clients "$tenant-prometheus" "/O=$tenant/CN=prometheus" "$client"
    pair agents "$tenant-konnectivity-agent" "/O=$tenant/CN=konnectivity-agent" "$client"
done
