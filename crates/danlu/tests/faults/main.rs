//! Faults with the real binary, killed and damaged from outside, and troubles of training that the
//! guard must answer. What comes of each is held against an undisturbed run, bit for bit.
#![allow(clippy::unwrap_used)]

mod experts;
mod lab;
mod regimes;
mod saves;
mod troubles;
