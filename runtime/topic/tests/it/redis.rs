//! The Redis backend against real servers, which each test starts and stops itself. Needs `redis-server` on the path.

mod server;
mod suite;
