//! The Redis backend against real servers, which each test starts and stops itself. Needs `redis-server` on the path.

mod histories;
mod server;
mod suite;
