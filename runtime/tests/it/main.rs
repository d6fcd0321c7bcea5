//! Whole-system tests: the real binary, real clients, free ports on loopback, and kills.

mod backup;
mod bad_input;
mod branches;
mod cli;
mod cluster;
mod doctor;
mod first_steps;
mod kills;
mod letters;
mod lifecycle;
mod losses;
mod node;
mod pauses;
mod poison;
mod races;
#[path = "../../topic/tests/it/redis/process.rs"]
mod redis_server;
mod replaced;
mod s3;
mod settings;
mod traces;
mod up;
mod windows;
