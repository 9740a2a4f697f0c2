//! A network that has run on a shape before allocates nothing to run on it again.

use crate::allocations::allocated;
use crate::network::{Weight, container, input, lenet_container, load, node, sparse};
use tersenet::network::{Argument, Elements, Graph, Resident};

/// A convolution whose tap columns share one copy of the input.
fn convolution() -> Vec<u8> {
    let ints = [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0];
    let nodes = vec![node("conv", &[0], &["weight"], &ints, &[])];
    let graph = Graph::new(vec![input("x", &[-1, 16, 16, 16])], nodes, vec![1], false).unwrap();
    container(&graph, &[("weight", Weight::Matrix(vec![8, 16, 3, 3], sparse(8 * 16 * 9, 3)))])
}

#[test]
fn a_second_run_allocates_nothing() {
    // Convolutions of tests beside this one would take scratch memory from the same pool, so it runs
    // in a process of its own.
    const ALONE: &str = "TERSENET_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let itself = std::env::current_exe().unwrap();
        let name = "network_memory::a_second_run_allocates_nothing";
        let run =
            std::process::Command::new(itself).args(["--exact", name]).env(ALONE, "1").output();
        let output = run.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let networks = [
        ("lenet", lenet_container(), [3, 1, 28, 28], 30),
        ("convolution", convolution(), [4, 16, 16, 16], 4 * 8 * 256),
    ];
    for (name, bytes, dims, outputs) in networks {
        let x = sparse(dims.iter().product(), 7);
        let arguments = [Argument { dims: &dims, elements: Elements::Float32(&x) }];
        for resident in ["compressed", "cached", "dense"] {
            let network = load(bytes.clone(), Resident::by_name(resident).unwrap()).unwrap();
            let mut y = vec![0.0; outputs];
            let mut run = || network.run_into(&arguments, &mut [&mut y], 1).unwrap();
            (0..2).for_each(|_| run());
            for _ in 0..100 {
                assert_eq!(allocated(&mut run), (0, 0), "{name} {resident}");
            }
        }
    }
}
