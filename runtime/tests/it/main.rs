//! Whole-system tests: the real binary, real clients, free ports on loopback, and kills.

mod bad_input;
mod first_steps;
mod kills;
mod lifecycle;
mod node;
mod traces;
mod up;
