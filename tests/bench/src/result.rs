// SPDX-License-Identifier: Apache-2.0

//! The results of a run, as they are written to a file and read back.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::statistics::Summary;
use super::traffic::Sample;

/// Of the file; another one cannot be compared.
const FORMAT: u32 = 1;

/// In a turn without other load, wall time is at most this many times the processor time, if the
/// work is bound by the processor.
const UNDISTURBED: f64 = 1.1;

/// By which time operations are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// As it passes.
    Wall,
    /// That client and server were given. What else the machine does is not in it.
    Processor,
}

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Of this file.
    pub format: u32,
    /// The machine it ran on.
    pub machine: Machine,
    /// Rounds in which each variant had its turn.
    pub rounds: usize,
    /// Milliseconds of a turn.
    pub slot: u64,
    /// Traffic on every way: part `paths`.
    pub paths: Vec<Cell>,
    /// Traffic with much on the node: part `scale`.
    pub scale: Vec<Cell>,
    /// Traffic through a proxy to a server behind the uplink: part `upstream`.
    #[serde(default)]
    pub upstream: Vec<Cell>,
    /// The programs: part `programs`.
    pub programs: Vec<Program>,
    /// The agent: part `costs`.
    pub costs: Vec<Cost>,
}

/// Where it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub processor: String,
    /// How many.
    pub processors: usize,
    /// How many processes wanted to run before the benchmark did: 0 on a quiet machine.
    pub load: f64,
}

/// The times of a variant for one kind of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// [`super::variant::Variant::name`]
    pub variant: String,
    /// [`super::host::Way::name`]
    pub way: String,
    /// 4 or 6.
    pub family: u8,
    /// [`super::traffic::Work::name`]
    pub work: String,
    /// The kind of object that the node has many of; empty on an ordinary node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub of: String,
    /// How much of it.
    #[serde(default)]
    pub size: u32,
    /// Nanoseconds of an operation in each round.
    pub wall: Vec<f64>,
    /// Nanoseconds of processor time of client and server for an operation in each round.
    pub cpu: Vec<f64>,
    /// Instructions for an operation in each round; empty where the machine does not count them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instructions: Vec<f64>,
}

/// The cost of a program for one packet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// The kind of packet it got.
    pub packet: String,
    /// Instructions that the verifier left in it.
    pub length: u32,
    /// Bytes of machine code.
    pub machine_code: u32,
    /// Nanoseconds of each series of runs, per run.
    pub nanoseconds: Vec<f64>,
    /// Instructions of the processor per run, including the start of the program; none where the
    /// machine does not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<f64>,
}

/// A cost of the agent itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cost {
    /// The operation.
    pub what: String,
    /// The unit: `ms`, `MiB`, `%`.
    pub unit: String,
    /// Each time.
    pub samples: Vec<f64>,
}

impl Cell {
    /// Adds a round.
    pub fn push(&mut self, sample: Sample) {
        let tenths = |value: f64| (value * 10.0).round() / 10.0;
        self.wall.push(tenths(sample.wall));
        self.cpu.push(tenths(sample.cpu));
        self.instructions.extend(sample.instructions.map(tenths));
    }

    /// Nanoseconds of an operation in each round.
    #[must_use]
    pub fn by(&self, clock: Clock) -> &[f64] {
        match clock {
            Clock::Wall => &self.wall,
            Clock::Processor => &self.cpu,
        }
    }

    /// Whether it is the same but for the variant.
    #[must_use]
    pub fn is_beside(&self, other: &Self) -> bool {
        (&self.way, self.family, &self.work, &self.of, self.size)
            == (&other.way, other.family, &other.work, &other.of, other.size)
    }
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// When procfs cannot be read.
    pub fn here() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
        let about = read("/proc/cpuinfo")?;
        let name = about
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        let load = read("/proc/loadavg")?;
        Ok(Self {
            // The part after the first dash is the distribution's.
            kernel: read("/proc/sys/kernel/osrelease")?
                .trim()
                .split('-')
                .next()
                .unwrap_or_default()
                .to_owned(),
            processor: name
                .map_or("unknown", |name| name.trim_start_matches([' ', '\t', ':']))
                .to_owned(),
            processors: std::thread::available_parallelism()?.get(),
            load: load.split(' ').next().unwrap_or_default().parse()?,
        })
    }
}

impl Results {
    /// Of a run that begins.
    ///
    /// # Errors
    /// When nothing can be found out about the machine.
    pub fn begin(effort: super::Effort) -> Result<Self> {
        Ok(Self {
            format: FORMAT,
            machine: Machine::here()?,
            rounds: effort.rounds,
            slot: u64::try_from(effort.slot.as_millis())?,
            paths: Vec::new(),
            scale: Vec::new(),
            upstream: Vec::new(),
            programs: Vec::new(),
            costs: Vec::new(),
        })
    }

    /// Reads a file that [`Results::write`] has written.
    ///
    /// # Errors
    /// When there is none, or it is of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let results: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} holds no results", path.display()))?;
        ensure!(
            results.format == FORMAT,
            "{} has format {}, this program knows {FORMAT}",
            path.display(),
            results.format
        );
        Ok(results)
    }

    /// Writes the file, one measurement on a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string(self)?.replace(",{\"", ",\n{\"") + "\n";
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("making {}", directory.display()))?;
        }
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// By which time operations are compared: by that of the processor where it holds all of the work.
    /// A kernel that accounts for softirqs apart (`CONFIG_IRQ_TIME_ACCOUNTING`) leaves half of it out.
    /// Then even the quickest turns have far less of it than of wall time.
    #[must_use]
    pub fn clock(&self) -> Clock {
        let cells = self.paths.iter().chain(&self.scale);
        let ratios = cells.flat_map(|cell| {
            let both = cell.wall.iter().zip(&cell.cpu);
            both.map(|(wall, cpu)| wall / cpu)
        });
        if ratios.fold(f64::INFINITY, f64::min) <= UNDISTURBED {
            Clock::Processor
        } else {
            Clock::Wall
        }
    }

    /// The cell of a variant in one of the lists.
    #[must_use]
    pub fn beside<'a>(cells: &'a [Cell], cell: &Cell, variant: &str) -> Option<&'a Cell> {
        cells
            .iter()
            .find(|other| other.variant == variant && other.is_beside(cell))
    }

    /// A cost, by its operation.
    #[must_use]
    pub fn cost(&self, what: &str) -> Option<Summary> {
        let cost = self.costs.iter().find(|cost| cost.what == what)?;
        Summary::of(&cost.samples)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Effort;
    use super::*;

    #[test]
    fn processor_time_counts_where_it_is_complete() {
        let mut results = Results::begin(Effort::SHORT).expect("procfs");
        assert_eq!(results.clock(), Clock::Wall);
        let cell = |wall: [f64; 3]| Cell {
            variant: "no hooks".to_owned(),
            way: "host".to_owned(),
            family: 4,
            work: "exchange".to_owned(),
            of: String::new(),
            size: 0,
            wall: wall.to_vec(),
            cpu: vec![10.0; 3],
            instructions: Vec::new(),
        };
        // A busy machine: one of the turns was undisturbed.
        results.paths = vec![cell([300.0, 10.1, 90.0])];
        assert_eq!(results.clock(), Clock::Processor);
        assert!((results.paths[0].by(results.clock())[0] - 10.0).abs() < 1e-9);
        // A quiet one that accounts for softirqs apart.
        results.paths = vec![cell([20.0, 20.1, 20.2])];
        assert_eq!(results.clock(), Clock::Wall);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let path = std::env::temp_dir().join(format!("bench-{}.json", std::process::id()));
        let mut results = Results::begin(Effort::SHORT).expect("procfs");
        results.costs.push(Cost {
            what: "start".to_owned(),
            unit: "ms".to_owned(),
            samples: vec![3.0, 1.0, 2.0],
        });
        results.write(&path).expect("a temporary directory");
        let read = Results::read(&path);
        fs::remove_file(&path).expect("it was just written");
        let read = read.expect("just written");
        assert_eq!(read.machine, results.machine);
        assert_eq!(read.cost("start").map(|cost| cost.median), Some(2.0));
        assert!(read.cost("end").is_none());
    }
}
