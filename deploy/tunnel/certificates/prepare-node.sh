#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes on a node of the control plane what the static pod of kustomize/static-pod mounts, with the cluster's own CA as
# kubeadm keeps it: the server's certificate for agents, a kubeconfig of the user system:konnectivity-server, and the
# directory of the Unix socket. Run it again for new ones, for a year each.
#
#   prepare-node.sh NAME[,NAME…] [API-SERVER]
#
# NAME is what agents dial, a name or an address. API-SERVER is https://127.0.0.1:6443 if it is not given. ROOT is
# before all paths; the user of the pod is OWNER, 65532.
set -euo pipefail

if (($# < 1 || $# > 2)); then
    sed -n '7,10s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 1
fi
api_server=${2:-https://127.0.0.1:6443}
root=${ROOT:-}
owner=${OWNER:-65532}
pki=$root/etc/kubernetes/pki
directory=$root/etc/kubernetes/konnectivity
socket=$root/var/lib/konnectivity
days=365
umask 077

fail() {
    echo "prepare-node.sh: $*" >&2
    exit 1
}

for file in "$pki/ca.crt" "$pki/ca.key"; do
    [[ -r $file ]] || fail "cannot read $file: run this on a node of the control plane that kubeadm has set up,"         "or set ROOT to the directory that has its /etc/kubernetes"
done

names=()
for name in ${1//,/ }; do
    if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then
        names+=("IP:$name")
    else
        names+=("DNS:$name")
    fi
done
names=$(IFS=,; echo "${names[*]}")

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

# pair NAME SUBJECT EXTENSIONS
pair() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$made/$1.key" \
        -out "$made/$1.csr" 2>"$made/log" || fail "cannot make a key and request for $1: $(<"$made/log")"
    openssl x509 -req -in "$made/$1.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial \
        -CAserial "$made/serial" -days $days -out "$made/$1.crt" -extfile <(printf '%b' "$3") 2>"$made/log" ||
        fail "cannot sign the certificate of $1 with $pki/ca.key: $(<"$made/log")"
    echo "$1: $(openssl x509 -in "$made/$1.crt" -noout -enddate)"
}

pair tls /CN=konnectivity-server "subjectAltName=$names\nextendedKeyUsage=serverAuth\n"
pair kubeconfig /CN=system:konnectivity-server 'extendedKeyUsage=clientAuth\n'
cat >"$made/kubeconfig" <<END
apiVersion: v1
kind: Config
clusters:
  - name: cluster
    cluster:
      server: $api_server
      certificate-authority-data: $(base64 -w0 "$pki/ca.crt")
users:
  - name: system:konnectivity-server
    user:
      client-certificate-data: $(base64 -w0 "$made/kubeconfig.crt")
      client-key-data: $(base64 -w0 "$made/kubeconfig.key")
contexts:
  - name: konnectivity-server
    context: {cluster: cluster, user: system:konnectivity-server}
current-context: konnectivity-server
END

install -d -m 0750 -g "$owner" "$directory"
install -d -m 0750 -o "$owner" -g "$owner" "$socket"
files=(tls.key tls.crt kubeconfig)
for file in "${files[@]}"; do
    # A rename: processes that watch the files never read a part of one.
    install -m 0640 -g "$owner" "$made/$file" "$directory/$file.new"
    mv "$directory/$file.new" "$directory/$file"
done
echo "written to $directory: ${files[*]}"
