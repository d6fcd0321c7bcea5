//! The engine against real Bees, hostile Bees and hostile uploads.

mod built;
mod calls;
mod confined;
mod guests;
mod kept;
mod languages;
mod libraries;
mod limits;
mod nn;
mod reuse;
mod sense;
mod shares;
mod state;
mod uploads;
mod zoo;
