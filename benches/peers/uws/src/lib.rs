//! Empty: Cargo wants a target, and this package is only a pin (see Cargo.toml). The server is `server.cpp`.
