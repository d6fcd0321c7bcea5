//! Whole-system tests: the real binary, real clients, free ports on loopback, and kills.

mod bad_input;
mod cli;
mod first_steps;
mod kills;
mod lifecycle;
mod losses;
mod node;
mod poison;
mod traces;
mod up;
