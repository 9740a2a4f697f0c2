//! Integration tests of the core, one module a topic.

mod matrices;
mod published;
mod roundtrip;
