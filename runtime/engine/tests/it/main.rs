//! The engine against real Bees, hostile Bees and hostile uploads.

mod calls;
mod kept;
mod limits;
mod reuse;
mod sense;
mod state;
mod uploads;
mod zoo;
