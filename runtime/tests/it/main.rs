//! Whole-system tests: the real binary, real clients, free ports on loopback, and kills.

mod access;
mod audit;
mod backup;
mod bad_input;
mod branches;
mod cli;
mod cluster;
mod doctor;
mod egress;
mod faults;
mod first_steps;
mod isolation;
mod joins;
mod keyed;
mod kills;
mod letters;
mod lifecycle;
mod loops;
mod losses;
mod models;
mod node;
mod oidc;
mod overload;
mod pauses;
mod peers;
mod pins;
mod poison;
#[path = "../../topic/tests/it/redis/proxy.rs"]
mod proxy;
mod quotas;
mod races;
#[path = "../../topic/tests/it/redis/process.rs"]
mod redis_server;
mod replaced;
mod residents;
mod revoked;
mod s3;
mod secrets;
mod settings;
mod signatures;
mod streams;
mod tls;
mod traces;
mod up;
mod upgrade;
mod windows;
