//! Integration tests of the core, one module a topic.

mod container;
mod matrices;
mod roundtrip;
