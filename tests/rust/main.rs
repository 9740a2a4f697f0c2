//! Integration tests of the core, one module a topic.

mod hostile_sections;
mod matrices;
mod roundtrip;
