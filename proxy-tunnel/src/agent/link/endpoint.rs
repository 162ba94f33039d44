// SPDX-License-Identifier: Apache-2.0

//! The connection to one target and the bytes on it. An endpoint's task waits only for its own target and for its own
//! space in the stream to the server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::Link;
use crate::flow::inbox::Item;
use crate::flow::pump::{self, BATCH, Reading};
use crate::flow::{Inbox, Lane, Unacknowledged};
use crate::go_error::os_text;
use crate::tcp::upkeep::{self, Use};
use crate::wire::Message;

/// The time that a target has to read the bytes that arrived before the request to close its connection. The client
/// waits equally long for the confirmation.
const FLUSH: Duration = Duration::from_secs(10);

/// The time for which the agent reads a closed connection to its end, so that the target receives all bytes and no
/// reset.
const LINGER: Duration = Duration::from_secs(2);

/// A message other than bytes that the server sends for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The client has finished sending.
    Finish,
    /// The server requests that the connection be closed.
    Close,
    /// The connection must be cut. The reason, if any, is sent to the server; `None` means that the stream to the
    /// server has ended.
    Cut(Option<String>),
}

/// A connection to a target.
#[derive(Debug)]
pub struct Endpoint {
    /// The number by which the server identifies the connection.
    pub connect_id: i64,
    /// The messages from the server for this connection.
    pub inbox: Inbox<Event>,
    /// The queue of messages to the server.
    pub lane: Lane,
    /// Notified when the server requests that the connection be closed.
    pub closing: Notify,
    /// Notified when the sending side of the target's connection has been shut down, because the client has finished
    /// sending.
    finished: Notify,
    unacknowledged: Unacknowledged,
}

/// The ways in which the direction from the server to the target ends.
enum Down {
    /// Both directions have ended.
    Finished,
    Close,
    Cut(Option<String>),
    /// Writing to the target failed.
    Failed(io::Error),
}

/// The ways in which the direction from the target to the server ends.
enum Up {
    End,
    Failed(io::Error),
    /// The stream to the server has ended.
    Lost,
}

impl Endpoint {
    /// Creates the endpoint of a connection that has just been established.
    #[must_use]
    pub fn new(connect_id: i64, inbox: Inbox<Event>, lane: Lane) -> Self {
        Self {
            connect_id,
            inbox,
            lane,
            closing: Notify::const_new(),
            finished: Notify::const_new(),
            unacknowledged: Unacknowledged::default(),
        }
    }

    /// Forwards bytes until the connection ends, and reports the end to the server.
    pub async fn serve(&self, mut stream: TcpStream, link: &Arc<Link>) {
        // An error means that the connection has ended; the next read returns that.
        let _ = upkeep::prepare(&stream, Use::Tunnel);
        let closed = self.carry(&mut stream, link).await;
        link.forget(self.connect_id);
        self.inbox.close();
        match closed {
            Closed::Regular { linger } => {
                self.report("");
                if linger {
                    // Bytes that the target still sends have no receiver, so they are discarded.
                    let _ = timeout(LINGER, drain(&stream)).await;
                }
            }
            Closed::Error(why) => {
                debug!(
                    connectionID = self.connect_id,
                    err = why.as_str(),
                    "connection ends with an error"
                );
                abort(&stream);
                self.report(&why);
            }
            Closed::Lost => abort(&stream),
        }
    }

    fn report(&self, error: &str) {
        // An error can be ignored: the end of the stream closes all connections.
        let _ = self.lane.push(Message::closed(self.connect_id, error));
    }

    async fn carry(&self, stream: &mut TcpStream, link: &Arc<Link>) -> Closed {
        let target = stream.peer_addr();
        let (mut reader, mut writer) = stream.split();
        let (mut has_ended, mut has_finished) = (false, false);
        let down = {
            let mut up = std::pin::pin!(self.up(&mut reader));
            let mut down = std::pin::pin!(self.down(&mut writer, link));
            loop {
                tokio::select! {
                    biased;
                    ended = up.as_mut(), if !has_ended => match ended {
                        Up::End => {
                            debug!(connectionID = self.connect_id, "remote connection EOF");
                            if !link.extensions.half_close {
                                return Closed::Regular { linger: false };
                            }
                            if has_finished {
                                break Down::Finished;
                            }
                            has_ended = true;
                            let _ = self.lane.push(Message::Finish(self.connect_id));
                        }
                        Up::Failed(error) => {
                            let at = target.map_or_else(|_| String::new(), |at| format!(" {at}"));
                            let text = os_text(&error);
                            return Closed::Error(format!("read tcp{at}: read: {text}"));
                        }
                        Up::Lost => return Closed::Lost,
                    },
                    () = self.finished.notified() => {
                        if has_ended {
                            break Down::Finished;
                        }
                        has_finished = true;
                    }
                    ended = down.as_mut() => break ended,
                }
            }
        };
        match down {
            Down::Finished => Closed::Regular { linger: false },
            Down::Close => {
                // The shutdown fails if the target has already closed the connection.
                let _ = writer.shutdown().await;
                Closed::Regular { linger: !has_ended }
            }
            Down::Cut(Some(why)) => Closed::Error(why),
            Down::Cut(None) => Closed::Lost,
            Down::Failed(error) => {
                let at = target.map_or_else(|_| String::new(), |at| format!(" {at}"));
                Closed::Error(format!("write tcp{at}: write: {}", os_text(&error)))
            }
        }
    }

    /// Forwards bytes from the target to the server.
    async fn up(&self, reader: &mut ReadHalf<'_>) -> Up {
        let mut reading = Reading::default();
        loop {
            let Ok(room) = self.lane.ready().await else {
                return Up::Lost;
            };
            match pump::read(reader, &mut reading, room).await {
                Ok(data) if data.is_empty() => return Up::End,
                Ok(data) => {
                    if self
                        .lane
                        .push(Message::Data(self.connect_id, data))
                        .is_err()
                    {
                        return Up::Lost;
                    }
                }
                Err(error) => return Up::Failed(error),
            }
        }
    }

    /// Forwards bytes from the server to the target, until the connection is closed or cut.
    async fn down(&self, writer: &mut WriteHalf<'_>, link: &Arc<Link>) -> Down {
        loop {
            let event = match self.inbox.next().await {
                Item::Data(data) => {
                    // The vector is allocated only while there is data, so an idle tunnel uses no memory for it.
                    let mut chunks = vec![data];
                    self.inbox.more(&mut chunks, BATCH);
                    let bytes = chunks.iter().map(bytes::Bytes::len).sum();
                    tokio::select! {
                        biased;
                        written = pump::write_all(writer, &mut chunks) => {
                            if let Err(error) = written {
                                return Down::Failed(error);
                            }
                        }
                        () = self.inbox.cut() => chunks.clear(),
                        () = self.flush_limit() => {
                            info!(
                                connectionID = self.connect_id,
                                "closing a connection whose target does not read"
                            );
                            return Down::Cut(Some(format!(
                                "the target did not read the last bytes within {} s",
                                FLUSH.as_secs()
                            )));
                        }
                    }
                    self.taken(bytes, link);
                    continue;
                }
                Item::Event(event) => event,
            };
            match event {
                Event::Finish => {
                    if let Err(error) = writer.shutdown().await {
                        return Down::Failed(error);
                    }
                    self.finished.notify_one();
                }
                Event::Close => return Down::Close,
                Event::Cut(why) => return Down::Cut(why),
            }
        }
    }

    async fn flush_limit(&self) {
        self.closing.notified().await;
        sleep(FLUSH).await;
        // The limit has passed for later writes, too.
        self.closing.notify_one();
    }

    /// Grants window for bytes that the target has accepted.
    fn taken(&self, bytes: usize, link: &Link) {
        if !link.extensions.window {
            return;
        }
        if let Some(grant) = self.unacknowledged.taken(bytes) {
            // The window is unnecessary if the stream has already ended.
            let _ = link.outbox.control(Message::Window(self.connect_id, grant));
        }
    }
}

/// The ways in which a connection ends.
enum Closed {
    Regular {
        /// True if the target may still be sending.
        linger: bool,
    },
    Error(String),
    /// The stream to the server has ended.
    Lost,
}

/// Reads and discards until the end. The buffer exists only while bytes are read, not while the task waits for them.
async fn drain(stream: &TcpStream) {
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut [0; 4096]) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            _ => {}
        }
    }
}

/// Makes the kernel reset the connection, so that the target does not treat truncated data as complete.
fn abort(stream: &TcpStream) {
    // This fails only if the connection has already ended.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
