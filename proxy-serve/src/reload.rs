// SPDX-License-Identifier: Apache-2.0

//! Applies changes of files, such as certificates and rules, while the process runs.
//!
//! The files' contents are compared, not their times or inodes: kubelet replaces a symbolic link to their directory,
//! other programs write the files in place, and not every file system reports either change. Invalid contents are
//! reported once, and the last valid ones stay in use.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};

use tracing::{error, warn};

/// The number of consecutive reads after which files that keep changing are used as they are.
const ATTEMPTS: usize = 5;

/// The contents of the files at one moment, in the order of their names in the settings.
#[derive(Clone, PartialEq, Eq)]
pub struct Files(Vec<Vec<u8>>);

impl Files {
    /// Creates the value from these contents.
    #[must_use]
    pub const fn new(contents: Vec<Vec<u8>>) -> Self {
        Self(contents)
    }

    /// Returns the contents of one file, or an empty slice if the index is out of range.
    #[must_use]
    pub fn at(&self, index: usize) -> &[u8] {
        self.0.get(index).map_or(&[], Vec::as_slice)
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The contents are omitted because they include private keys.
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

/// A set of files from which a value is created.
pub trait Source: Send + 'static {
    /// The type of the value.
    type Made: Send + Sync + 'static;

    /// The reason why the files cannot be used.
    type Error: Error + 'static;

    /// The name of the files' contents, in the plural, for the log.
    const CONTENT: &'static str;

    /// Reads all files.
    ///
    /// # Errors
    /// Returns an error if one of them cannot be read.
    fn read(&self) -> Result<Files, Self::Error>;

    /// Creates the value from the files' contents.
    ///
    /// # Errors
    /// Returns an error if the contents cannot be used.
    fn make(&self, files: &Files) -> Result<Self::Made, Self::Error>;

    /// Logs that this value is in use from now on.
    fn announce(made: &Self::Made);

    /// Returns the expiry of the program's own certificate, in Unix time, and the warning for an expired one.
    #[must_use]
    fn expiry(_: &Self::Made) -> Option<(Duration, &'static str)> {
        None
    }
}

/// The last valid value, which is replaced when the files change.
#[derive(Debug)]
pub struct Current<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Current<T> {
    /// Returns the current value, for one connection.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

/// A change, for the program's metrics.
#[derive(Debug)]
pub enum Change<'a, T> {
    /// The first contents are in use.
    Loaded(&'a T),
    /// Changed contents are in use.
    Reloaded(&'a T),
    /// Changed contents cannot be used.
    Refused(&'a (dyn Error + 'static)),
}

/// A callback that receives changes.
type Observer<T> = Box<dyn Fn(Change<'_, T>) + Send>;

/// Checks the files of one [`Source`] for changes.
pub struct Reloader<S: Source> {
    source: S,
    current: Current<S::Made>,
    observer: Observer<S::Made>,
    /// The contents in use.
    used: Files,
    /// The contents, or the error, that were last reported as unusable.
    refused: Option<Refused>,
}

#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Unreadable(String),
    Useless(Files),
}

impl<S: Source> Reloader<S> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Returns an error if they cannot be used.
    pub fn new(
        source: S,
        observer: impl Fn(Change<'_, S::Made>) + Send + 'static,
    ) -> Result<Self, S::Error> {
        let used = source.read()?;
        let made = source.make(&used)?;
        announce::<S>(&made);
        observer(Change::Loaded(&made));
        Ok(Self {
            source,
            current: Current(Arc::new(RwLock::new(Arc::new(made)))),
            observer: Box::new(observer),
            used,
            refused: None,
        })
    }

    /// Returns a handle to the value in use, which follows later changes.
    #[must_use]
    pub fn current(&self) -> Current<S::Made> {
        self.current.clone()
    }

    /// Returns the files' contents after they were the same in two consecutive reads, so that a certificate and key
    /// that are being replaced are not treated as a mismatched pair.
    fn stable(&self) -> Result<Files, S::Error> {
        let mut files = self.source.read()?;
        for _ in 1..ATTEMPTS {
            if files == self.used {
                break;
            }
            let again = self.source.read()?;
            if again == files {
                break;
            }
            files = again;
        }
        Ok(files)
    }

    fn refuse(&mut self, refused: Refused, error: &S::Error) {
        if self.refused.as_ref() == Some(&refused) {
            return;
        }
        error!(
            "the changed {} cannot be used, those from before still are: {}",
            S::CONTENT,
            chain(error)
        );
        self.refused = Some(refused);
        (self.observer)(Change::Refused(error));
    }
}

/// A set of files that can be checked for changes, regardless of its contents.
pub trait Look: Send {
    /// Checks for changes and applies them.
    fn look(&mut self);
}

impl<S: Source> Look for Reloader<S> {
    fn look(&mut self) {
        let files = match self.stable() {
            Ok(files) => files,
            Err(error) => return self.refuse(Refused::Unreadable(chain(&error)), &error),
        };
        if files == self.used {
            self.refused = None;
            return;
        }
        match self.source.make(&files) {
            Ok(made) => {
                announce::<S>(&made);
                (self.observer)(Change::Reloaded(&made));
                self.current.set(made);
                self.used = files;
                self.refused = None;
            }
            Err(error) => self.refuse(Refused::Useless(files), &error),
        }
    }
}

/// Checks all these files every `interval` for as long as the process runs, on one thread.
///
/// # Errors
/// Returns an error if no thread can be started.
pub fn watch(mut reloaders: Vec<Box<dyn Look>>, interval: Duration) -> io::Result<()> {
    thread::Builder::new()
        .name("reload".to_owned())
        .spawn(move || {
            loop {
                thread::sleep(interval);
                for reloader in &mut reloaders {
                    reloader.look();
                }
            }
        })
        .map(drop)
}

/// Logs that this value is in use from now on, and warns if its certificate has expired.
fn announce<S: Source>(made: &S::Made) {
    S::announce(made);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    if let Some((ends, warning)) = S::expiry(made)
        && ends <= now
    {
        warn!("{warning}");
    }
}

/// Returns the text of an error and its causes, in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
