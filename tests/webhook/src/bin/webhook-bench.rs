// SPDX-License-Identifier: Apache-2.0

//! Reviews per second and memory of the webhook, over TLS on kept connections on loopback. Server
//! and clients share the machine, so the processor time of each is reported, too.

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::signals;
use webhook_tests::Webhook;
use webhook_tests::client::Tls;
use webhook_tests::load::Load;
use webhook_tests::oracle::review;

const USAGE: &str = "Usage: webhook-bench [--clients N[,N…]] [--seconds N] [--json]";

struct Options {
    clients: Vec<usize>,
    time: Duration,
    json: bool,
}

fn main() -> ExitCode {
    signals::run("webhook-bench", || {
        options(std::env::args().skip(1)).and_then(|options| run(&options))
    })
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        clients: vec![1, 50],
        time: Duration::from_secs(10),
        json: false,
    };
    while let Some(flag) = args.next() {
        let mut value = || args.next().with_context(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--json" => options.json = true,
            "--seconds" => options.time = Duration::from_secs(value()?.parse()?),
            "--clients" => {
                options.clients = value()?
                    .split(',')
                    .map(|number| Ok(number.parse()?))
                    .collect::<Result<_>>()?;
            }
            other => bail!("{other}: unknown; {USAGE}"),
        }
    }
    ensure!(!options.clients.contains(&0), "no clients; {USAGE}");
    ensure!(!options.time.is_zero(), "no time; {USAGE}");
    Ok(options)
}

fn run(options: &Options) -> Result<()> {
    let webhook = Webhook::start(&[])?;
    let idle = webhook.resident()?;
    let body = review(&pod()).to_string();
    let mut runs = Vec::new();
    for clients in &options.clients {
        runs.push(measure(&webhook, *clients, options.time, &body)?);
    }
    let result = json!({
        "review_bytes": body.len(),
        "resident_idle_kib": idle,
        "runs": runs,
    });
    if options.json {
        println!("{}", serde_json::to_string_pretty(&result)?);
        return Ok(());
    }
    println!(
        "a review has {} bytes; {idle} KiB resident when idle\n",
        body.len()
    );
    println!("| clients | reviews/s | server, µs/review | clients, µs/review | resident, KiB |");
    println!("|---|---|---|---|---|");
    for run in runs {
        println!(
            "| {} | {:.0} | {:.1} | {:.1} | {} |",
            run["clients"],
            run["reviews_per_second"].as_f64().unwrap_or_default(),
            run["server_cpu_us_per_review"].as_f64().unwrap_or_default(),
            run["client_cpu_us_per_review"].as_f64().unwrap_or_default(),
            run["resident_kib"],
        );
    }
    Ok(())
}

/// A pod as they usually are: a service account's volume, probes, resources.
fn pod() -> Value {
    let container = |name: &str| {
        json!({
            "name": name,
            "image": format!("registry.example.com/shop/{name}:v1.27.3"),
            "args": ["--listen=:8080", "--log-level=info"],
            "env": [
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "GOMAXPROCS", "value": "2"},
            ],
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            "volumeMounts": [{
                "name": "kube-api-access",
                "readOnly": true,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            }],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 5},
            "imagePullPolicy": "IfNotPresent",
        })
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "shop-6d4cf56db6-",
            "namespace": "shop",
            "labels": {"app": "shop", "pod-template-hash": "6d4cf56db6"},
        },
        "spec": {
            "initContainers": [container("migrate")],
            "containers": [container("shop"), container("metrics")],
            "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt"}},
            ]}}],
            "restartPolicy": "Always",
            "serviceAccountName": "shop",
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
            ],
        },
        "status": {},
    })
}

fn measure(webhook: &Webhook, clients: usize, time: Duration, body: &str) -> Result<Value> {
    let tls = Tls::new(&webhook.authority)?;
    let stop = AtomicBool::new(false);
    let load = Load {
        address: webhook.reviews,
        tls: &tls,
        clients,
        reconnect: None,
        review: body.as_bytes(),
    };
    let mut before = (0.0, 0.0);
    let served = std::thread::scope(|scope| {
        load.run(&stop, || {
            before = processor_times(webhook).unwrap_or_default();
            scope.spawn(|| {
                std::thread::sleep(time);
                stop.store(true, Ordering::Relaxed);
            });
        })
    })?;
    let after = processor_times(webhook)?;
    let reviews = u32::try_from(served.reviews).context("too many to count")?;
    let each = |before: f64, after: f64| (after - before) * 1e6 / f64::from(reviews);
    Ok(json!({
        "clients": clients,
        "reviews": served.reviews,
        "seconds": served.time.as_secs_f64(),
        "reviews_per_second": (f64::from(reviews) / served.time.as_secs_f64()).round(),
        "server_cpu_us_per_review": each(before.0, after.0),
        "client_cpu_us_per_review": each(before.1, after.1),
        "resident_kib": webhook.resident()?,
    }))
}

/// The processor time of the webhook and of this process, in seconds.
fn processor_times(webhook: &Webhook) -> Result<(f64, f64)> {
    Ok((
        processor_time(&webhook.process.id().to_string())?,
        processor_time("self")?,
    ))
}

/// proc(5): fields 14 and 15 of `stat`, in ticks; the second one ends in a parenthesis.
fn processor_time(process: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no end of the name")?;
    let ticks: f64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap_or(0.0))
        .sum();
    // SAFETY: sysconf has no memory effects.
    let each = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks / f64::from(i32::try_from(each)?))
}
