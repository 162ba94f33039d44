// SPDX-License-Identifier: Apache-2.0

//! Takes changed files into use while the process runs: certificates, rules.
//!
//! The files' contents are compared, not their times or inodes: kubelet exchanges a symbolic link to
//! their directory, others write the files in place, and not every file system reports either. Contents that
//! cannot be used are reported once, and the last good ones stay in use.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};

use tracing::{error, warn};

/// Reads in a row after which files that change all the time are taken as they are.
const ATTEMPTS: usize = 5;

/// The contents of the files at one moment, in the order in which they are named.
#[derive(Clone, PartialEq, Eq)]
pub struct Files(Vec<Vec<u8>>);

impl Files {
    /// These contents.
    #[must_use]
    pub const fn new(contents: Vec<Vec<u8>>) -> Self {
        Self(contents)
    }

    /// The contents of one file; empty if there are not so many.
    #[must_use]
    pub fn at(&self, index: usize) -> &[u8] {
        self.0.get(index).map_or(&[], Vec::as_slice)
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the keys.
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

/// Files of which something is made.
pub trait Source: Send + 'static {
    /// The value that is made of them.
    type Made: Send + Sync + 'static;

    /// Why they cannot be used.
    type Error: Error + 'static;

    /// The name of the files' contents, in the plural, for the log.
    const CONTENT: &'static str;

    /// Reads all files.
    ///
    /// # Errors
    /// One of them cannot be read.
    fn read(&self) -> Result<Files, Self::Error>;

    /// Makes it of the files' contents.
    ///
    /// # Errors
    /// The contents cannot be used.
    fn make(&self, files: &Files) -> Result<Self::Made, Self::Error>;

    /// Logs that this is in use from now on.
    fn announce(made: &Self::Made);

    /// When the own certificate ends, in Unix time, and the warning for when that is over.
    #[must_use]
    fn expiry(_: &Self::Made) -> Option<(Duration, &'static str)> {
        None
    }
}

/// The last good value, as it changes.
#[derive(Debug)]
pub struct Current<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Current<T> {
    /// The value at this moment, for one connection.
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

/// Receives changes.
type Observer<T> = Box<dyn Fn(Change<'_, T>) + Send>;

/// Looks at the files of one [`Source`].
pub struct Reloader<S: Source> {
    source: S,
    current: Current<S::Made>,
    observer: Observer<S::Made>,
    /// The contents in use.
    used: Files,
    /// The contents, or the error, that were reported to be of no use.
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
    /// They cannot be used.
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

    /// The value in use, now and later.
    #[must_use]
    pub fn current(&self) -> Current<S::Made> {
        self.current.clone()
    }

    /// The files' contents, read again until they were the same twice: a pair that is being exchanged must
    /// not be taken for one that does not match.
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

/// Watches files for changes, without knowing their contents.
pub trait Look: Send {
    /// Takes changed files into use.
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

/// Looks at all these files every `interval` for as long as the process lives, on one thread.
///
/// # Errors
/// There can be no further thread.
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

/// Logs that this is in use from now on.
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

/// An error with its causes, in one line.
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
