//! The Redis backend against real servers, which each test starts and stops itself. Needs `redis-server` on the path.

mod clustered;
mod faults;
mod gates;
mod histories;
mod holds;
mod kept;
mod nodes;
mod process;
mod proxy;
mod refusals;
mod rescaled;
mod server;
mod suite;

pub use server::OnRedis;
