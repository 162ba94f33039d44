// SPDX-License-Identifier: Apache-2.0

//! Starts the container of a pod's spec as the kubelet would start it, but as a process. Its volumes are directories,
//! and arguments that name a path below a mount are rewritten to name a path below such a directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tests::http::{self, Answer};
use tests::manifests::of_kind;
use tests::netns::Netns;

use crate::program::{Make, Part};
use crate::tunnel::Tunnel;

/// The parts that a cluster provides for its pods.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Secrets by name, directories of the node by path, and `token` and `kube-root-ca.crt` for projected volumes. The
    /// values are files by name, as paths of their contents.
    pub files: BTreeMap<String, BTreeMap<String, PathBuf>>,
    /// Arguments that differ in the test, with their replacements.
    pub instead: Vec<(String, Vec<String>)>,
}

impl Surroundings {
    /// Adds a Secret, or a directory of the node.
    pub fn add(&mut self, name: &str, files: &[(&str, PathBuf)]) {
        let files = files
            .iter()
            .map(|(name, path)| ((*name).to_owned(), path.clone()));
        self.files.insert(name.to_owned(), files.collect());
    }

    fn of(&self, name: &str) -> Result<&BTreeMap<String, PathBuf>> {
        let files = self.files.get(name);
        files.with_context(|| format!("the pod mounts {name}, which is not there"))
    }
}

/// A container with the settings of its pod.
#[derive(Debug)]
pub struct Pod<'a> {
    spec: &'a Value,
    container: &'a Value,
    objects: &'a [Value],
}

impl<'a> Pod<'a> {
    /// Returns the object of this kind if it is a pod, or else the pod of its template.
    ///
    /// # Errors
    /// Returns an error if there is no such object.
    pub fn of(objects: &'a [Value], kind: &str) -> Result<Self> {
        let (_, object) = of_kind(objects, kind)
            .next()
            .with_context(|| format!("no {kind}"))?;
        let template = &object["spec"]["template"]["spec"];
        let spec = if kind == "Pod" {
            &object["spec"]
        } else {
            template
        };
        Ok(Self {
            spec,
            container: &spec["containers"][0],
            objects,
        })
    }

    /// Returns the path of the program in `command`, which has the name of upstream's images or of ours.
    ///
    /// # Errors
    /// Returns an error if the program is unknown, or is not built.
    pub fn program(&self) -> Result<PathBuf> {
        let command = self.container["command"][0].as_str().unwrap_or_default();
        let part = match command {
            "/usr/bin/konnectivity-server" | "/proxy-server" => Part::Server,
            "/usr/bin/konnectivity-agent" | "/proxy-agent" => Part::Agent,
            _ => bail!("the image has no {command}"),
        };
        part.of(Make::Ours)
    }

    /// Returns the environment variables. `name` is used as the name of the pod, the node and so on.
    ///
    /// # Errors
    /// Returns an error if a `ConfigMap` does not exist.
    pub fn environment(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let mut variables = BTreeMap::new();
        for source in list(&self.container["envFrom"]) {
            let wanted = &source["configMapRef"]["name"];
            let (_, map) = of_kind(self.objects, "ConfigMap")
                .find(|(name, _)| *wanted == *name)
                .with_context(|| format!("no ConfigMap {wanted}"))?;
            for (key, value) in map["data"].as_object().context("no data")? {
                variables.insert(key.clone(), text(value)?);
            }
        }
        for variable in list(&self.container["env"]) {
            let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
            let value = match field {
                None => text(&variable["value"])?,
                Some("status.hostIP" | "status.podIP") => "127.0.0.1".to_owned(),
                Some("metadata.name" | "metadata.namespace" | "spec.nodeName") => name.to_owned(),
                Some(other) => bail!("the kubelet has no {other}"),
            };
            variables.insert(text(&variable["name"])?, value);
        }
        Ok(variables)
    }

    /// Returns the arguments, with variables expanded.
    ///
    /// # Errors
    /// Returns an error if they are not strings.
    pub fn arguments(&self, variables: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let arguments = list(&self.container["args"]).map(|argument| {
            let argument = text(argument)?;
            Ok(variables.iter().fold(argument, |argument, (name, value)| {
                argument.replace(&format!("$({name})"), value)
            }))
        });
        arguments.collect()
    }

    /// Starts the container in a namespace, as a process of the tunnel.
    ///
    /// # Errors
    /// Returns an error if a mounted file is missing, or if the container cannot be started.
    pub fn start(
        &self,
        tunnel: &mut Tunnel,
        netns: Option<&Netns>,
        process: &'static str,
        around: &Surroundings,
    ) -> Result<()> {
        let directory = tunnel.dir().join("pods").join(process);
        let mounts = self.mounts(&directory, around)?;
        let variables = self.environment(process)?;
        let mut words: Vec<String> = vec!["-i".to_owned()];
        words.extend(
            variables
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        words.push(self.program()?.display().to_string());
        for argument in self.arguments(&variables)? {
            let instead = around.instead.iter().find(|(from, _)| *from == argument);
            if let Some((_, words_instead)) = instead {
                words.extend(words_instead.iter().cloned());
                continue;
            }
            let below = mounts
                .iter()
                .find(|(mounted, _)| argument.contains(&format!("={mounted}")));
            words.push(match below {
                Some((mounted, here)) => argument.replacen(mounted.as_str(), here, 1),
                None => argument,
            });
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let env = Path::new("env");
        match netns {
            Some(netns) => tunnel.spawn_in(netns, process, env, &words),
            None => tunnel.spawn(process, env, &words),
        }
    }

    /// Returns the mount paths and the directories that stand for them, the longest path first.
    fn mounts(&self, directory: &Path, around: &Surroundings) -> Result<Vec<(String, String)>> {
        let mut mounts = Vec::new();
        for mount in list(&self.container["volumeMounts"]) {
            let volume = list(&self.spec["volumes"]).find(|volume| volume["name"] == mount["name"]);
            let volume = volume.with_context(|| format!("no volume for {mount}"))?;
            let here = directory.join(text(&volume["name"])?);
            self.fill(volume, &here, around)
                .with_context(|| format!("volume {volume}"))?;
            mounts.push((text(&mount["mountPath"])?, here.display().to_string()));
        }
        mounts.sort_by_key(|(mounted, _)| std::cmp::Reverse(mounted.len()));
        Ok(mounts)
    }

    fn fill(&self, volume: &Value, here: &Path, around: &Surroundings) -> Result<()> {
        let path = volume["hostPath"]["path"].as_str().unwrap_or_default();
        if volume["hostPath"]["type"] == "FileOrCreate" {
            fs::create_dir_all(here.parent().context("no directory")?)?;
            if let Some(file) = around.of(path)?.values().next() {
                fs::copy(file, here)?;
            }
            return Ok(());
        }
        fs::create_dir_all(here)?;
        let copy = |files: &BTreeMap<String, PathBuf>| -> Result<()> {
            for (name, path) in files {
                let copied = fs::copy(path, here.join(name));
                copied.with_context(|| format!("copying {}", path.display()))?;
            }
            Ok(())
        };
        if let Some(secret) = volume["secret"]["secretName"].as_str() {
            return copy(around.of(secret)?);
        }
        if let Some(name) = volume["configMap"]["name"].as_str() {
            let map = of_kind(self.objects, "ConfigMap").find(|(found, _)| *found == name);
            let (_, map) = map.with_context(|| format!("no ConfigMap {name}"))?;
            for (file, content) in map["data"].as_object().context("no data")? {
                fs::write(here.join(file), text(content)?)?;
            }
            return Ok(());
        }
        if !path.is_empty() {
            return copy(around.of(path)?);
        }
        let mut sources = list(&volume["projected"]["sources"]).peekable();
        ensure!(
            sources.peek().is_some(),
            "a kind of volume that is not known here"
        );
        for source in sources {
            if let Some(file) = source["serviceAccountToken"]["path"].as_str() {
                let token = around.of("token")?.values().next();
                fs::copy(token.context("no token")?, here.join(file))?;
            } else {
                copy(around.of(&text(&source["configMap"]["name"])?)?)?;
            }
        }
        Ok(())
    }

    /// Returns whether the container has this probe.
    #[must_use]
    pub fn has(&self, probe: &str) -> bool {
        !self.container[probe].is_null()
    }

    /// Sends the request of a probe, in the pod's namespace.
    ///
    /// # Errors
    /// Returns an error if there is no such probe.
    pub fn probe(&self, netns: &Netns, probe: &str) -> Result<Answer> {
        let get = &self.container[probe]["httpGet"];
        let port = match &get["port"] {
            Value::String(name) => {
                let ports = list(&self.container["ports"]).find(|port| port["name"] == *name);
                ports.with_context(|| format!("no port {name}"))?["containerPort"].clone()
            }
            port => port.clone(),
        };
        let path = get["path"]
            .as_str()
            .with_context(|| format!("no {probe}"))?;
        http::ask(netns, &format!("127.0.0.1:{port}"), path, &[])
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> Result<String> {
    let text = value.as_str().map(str::to_owned);
    text.with_context(|| format!("{value} is no string"))
}
