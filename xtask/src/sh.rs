// SPDX-License-Identifier: Apache-2.0

//! Runs other programs: every command is printed before it runs, and its errors contain the
//! command.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// The variables that every cargo command has, and that are not printed because they would hide the
/// command.
const UNSHOWN: &[&str] = &["PATH", "CARGO_TARGET_DIR"];

/// Returns a command whose program, and the programs that this starts, are looked up in
/// [`search_path`].
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // `join_paths` fails only for a directory with a colon in its name, which splitting cannot
    // return.
    if let Ok(path) = env::join_paths(search_path()) {
        command.env("PATH", path);
    }
    command
}

/// Prints the command and runs it with this process's input and output.
///
/// # Errors
/// Returns an error if the program cannot be started or does not exit with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = show(command);
    eprintln!("$ {line}");
    let status = command.status().with_context(|| cannot_start(&line))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs the command without printing it, and returns its standard output.
///
/// # Errors
/// Returns an error if the program cannot be started, does not exit with 0 (with its standard
/// error), or writes bytes that are not UTF-8.
pub fn read(command: &mut Command) -> Result<String> {
    let line = show(command);
    let output = command.output().with_context(|| cannot_start(&line))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}\n{}", output.status, said.trim_end());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{line}` wrote bytes that are no UTF-8"))
}

/// Replaces this process with the program, which then receives signals, terminal and exit status.
///
/// # Errors
/// Returns only with an error: the program could not be started.
pub fn exec(command: &mut Command) -> Result<()> {
    let line = show(command);
    eprintln!("$ {line}");
    Err(command.exec()).with_context(|| cannot_start(&line))
}

fn cannot_start(line: &str) -> String {
    format!("cannot start `{line}`")
}

/// Returns the command as a user would type it, with the variables that it sets.
fn show(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(key, value)| {
        let (key, value) = (key.to_string_lossy(), value?.to_string_lossy());
        (!UNSHOWN.contains(&key.as_ref())).then(|| format!("{key}={}", quoted(&value)))
    });
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quoted(&word.to_string_lossy()));
    variables.chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%$".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Returns the directories in `PATH`, followed by those with required programs that a user's `PATH`
/// may lack: the administrator's programs, and cargo's, where bpf-linker is installed.
pub fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    for directory in more
        .into_iter()
        .chain(home("CARGO_HOME", ".cargo").map(|home| home.join("bin")))
    {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    directories
}

/// Returns the directory in `variable`, or else the directory `default` in the user's home.
pub fn home(variable: &str, default: &str) -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value: &OsString| !value.is_empty());
    set(variable)
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&set("HOME")?).join(default)))
}

/// Returns the first executable file with this name in `directories`.
pub fn find(name: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    directories
        .iter()
        .map(|directory| directory.join(name))
        .find(|path| is_executable(path))
}

/// Returns whether this is a file with execute permission.
pub fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Returns whether this process runs as root. The owner of `/proc/self` is the effective user.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Fails unless this process runs as root.
///
/// # Errors
/// Returns an error with the command to repeat and the reason if it does not run as root.
pub fn require_root(task: &str, why: &str) -> Result<()> {
    if !is_root() {
        bail!(
            "`cargo xtask {task}` needs root: {why}. Run it as root, or with `sudo -E env \"PATH=$PATH\"` before it"
        );
    }
    Ok(())
}

/// Formats a duration for people: `0.4 s`, `12.0 s`, `3 min 5 s`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

/// Formats a number of bytes for people, in MiB with one decimal.
pub fn size(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_one_would_type_it() {
        let mut command = command("cargo");
        command
            .args(["doc", "two words", "it's"])
            .env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(
            show(&command),
            r"RUSTDOCFLAGS='-D warnings' cargo doc 'two words' 'it'\''s'"
        );
    }

    #[test]
    fn an_error_names_the_command_and_what_it_said() {
        let error = read(Command::new("sh").args(["-c", "echo sorry >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`sh -c 'echo sorry >&2; exit 3'` failed"),
            "{text}"
        );
        assert!(text.ends_with("sorry"), "{text}");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0.0 MiB");
        assert_eq!(size(5 * (1 << 20) + (1 << 19)), "5.5 MiB");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(Duration::from_millis(412)), "0.4 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 5 s");
    }
}
