//! Integration tests of the core, one module a topic.

mod allocations;
mod archive;
mod bound;
mod container;
mod convolution;
mod golden;
mod hostile_sections;
mod kernels;
mod matrices;
mod network;
mod network_ids;
mod network_memory;
mod published;
mod roundtrip;
mod side_by_side;
mod stored;
