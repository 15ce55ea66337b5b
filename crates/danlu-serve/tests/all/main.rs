//! The server as clients meet it: real HTTP against a real listening socket, a tiny model with
//! random weights, and engines that misbehave on purpose.

mod api;
mod http;
mod json;
mod life;
mod media;
mod official;
mod shared;
mod structured;
mod support;
