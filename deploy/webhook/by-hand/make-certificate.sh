#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes an authority and a certificate for the webhook's Service, for a year, with openssl. Run it again
# for a new pair; the authority is kept, so that it can be exchanged while the webhook works.
set -euo pipefail

service=apiserver-proxy-pod-webhook.kube-system.svc
days=365

mkdir -p "$(dirname "${BASH_SOURCE[0]}")/certificates"
cd "$(dirname "${BASH_SOURCE[0]}")/certificates"
umask 077

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
if [[ ! -f ca.key ]]; then
    openssl req -x509 "${new_key[@]}" -days $((10 * days)) -subj "/CN=$service authority" \
        -addext keyUsage=keyCertSign -keyout ca.key -out ca.crt
fi
openssl req "${new_key[@]}" -subj "/CN=$service" -keyout tls.key -out tls.csr
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days $days -out tls.crt \
    -extfile <(printf 'subjectAltName=DNS:%s,DNS:%s.cluster.local\nextendedKeyUsage=serverAuth\n' \
        "$service" "$service")
cat >ca-bundle.yaml <<END
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata:
  name: apiserver-proxy.networking.gardener.cloud
webhooks:
  - name: apiserver-proxy.networking.gardener.cloud
    clientConfig:
      caBundle: $(base64 -w0 ca.crt)
END
openssl x509 -in tls.crt -noout -subject -enddate
