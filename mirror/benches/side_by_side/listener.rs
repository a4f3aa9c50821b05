//! A listener on loopback that can be closed and opened again at the same address.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// A listener that runs as long as the process.
pub(crate) struct Listener {
    address: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    socket: Option<TcpListener>,
    is_wanted: bool,
    is_open: bool,
}

impl Listener {
    /// Returns an open listener at a free port.
    pub(crate) fn new() -> Arc<Self> {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Arc::new(Self {
            address: socket.local_addr().unwrap(),
            state: Mutex::new(State {
                socket: Some(socket),
                is_wanted: true,
                is_open: true,
            }),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves each connection in a thread of its own.
    pub(crate) fn serve(self: &Arc<Self>, serve: impl Fn(TcpStream) + Send + Sync + 'static) {
        let (listener, serve) = (self.clone(), Arc::new(serve));
        std::thread::spawn(move || {
            loop {
                let socket = listener.reopen();
                while let Ok((stream, _)) = socket.accept() {
                    if !listener.state.lock().is_wanted {
                        break;
                    }
                    let serve = serve.clone();
                    std::thread::spawn(move || serve(stream));
                }
                drop(socket);
                listener.set(|state| state.is_open = false);
            }
        });
    }

    /// Waits until the listener is wanted, and opens it.
    fn reopen(&self) -> TcpListener {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| !state.is_wanted);
        let socket = state.socket.take();
        let socket = socket.unwrap_or_else(|| TcpListener::bind(self.address).unwrap());
        state.is_open = true;
        self.changed.notify_all();
        socket
    }

    /// Opens or closes the listener; returns once it is so.
    pub(crate) fn set_open(&self, is_wanted: bool) {
        self.set(|state| state.is_wanted = is_wanted);
        // The thread that waits for clients has to check the state.
        let _ = TcpStream::connect(self.address);
        self.changed
            .wait_while(&mut self.state.lock(), |state| state.is_open != is_wanted);
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_all();
    }
}
