//! A network that has run on a shape before allocates nothing to run on it again.

use crate::allocations::allocated;
use crate::network::{Weight, container, input, lenet_container, load, node, sparse};
use tersenet::network::{Argument, Elements, Graph, Input, InputType, Resident};

/// A convolution whose tap columns share one copy of the input.
fn convolution() -> Vec<u8> {
    let ints = [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0];
    let nodes = vec![node("conv", &[0], &["weight"], &ints, &[])];
    let graph = Graph::new(vec![input("x", &[-1, 16, 16, 16])], nodes, vec![1], false).unwrap();
    container(&graph, &[("weight", Weight::Matrix(vec![8, 16, 3, 3], sparse(8 * 16 * 9, 3)))])
}

/// Rows of an embedding, a softmax over their places, and a linear layer of one number.
fn embedding() -> Vec<u8> {
    let nodes = vec![
        node("embedding", &[0], &["letters"], &[], &[]),
        node("softmax", &[1], &[], &[1], &[]),
        node("linear", &[2], &["weight"], &[0], &[]),
    ];
    let ids = Input { dtype: InputType::Int64, ..input("ids", &[-1, 9]) };
    let graph = Graph::new(vec![ids], nodes, vec![3], false).unwrap();
    let weights = [
        ("letters", Weight::Matrix(vec![200, 12], sparse(2400, 3))),
        ("weight", Weight::Matrix(vec![70, 12], sparse(840, 5))),
    ];
    container(&graph, &weights)
}

/// A linear layer whose vectors are multiplied in slices where the CPU is faster so.
fn linear() -> Vec<u8> {
    let nodes = vec![node("linear", &[0], &["weight"], &[1], &[])];
    let graph = Graph::new(vec![input("x", &[-1, 77])], nodes, vec![1], false).unwrap();
    container(&graph, &[("weight", Weight::Matrix(vec![300, 77], sparse(300 * 77, 5)))])
}

/// Whether this process runs nothing but a test; else the test was run so, and passed.
///
/// Convolutions of tests beside it would take scratch memory from the same pool.
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "TERSENET_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let name = format!("network_memory::{test}");
    let mut itself = std::process::Command::new(std::env::current_exe().unwrap());
    let output = itself.args(["--exact", &name]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

#[test]
fn a_second_run_allocates_nothing() {
    if !is_alone("a_second_run_allocates_nothing") {
        return;
    }
    let networks = [
        ("lenet", lenet_container(), vec![3, 1, 28, 28], 30),
        ("lenet, an image", lenet_container(), vec![1, 1, 28, 28], 10),
        ("convolution", convolution(), vec![4, 16, 16, 16], 4 * 8 * 256),
        ("embedding", embedding(), vec![2, 9], 2 * 9 * 70),
        ("linear, a vector", linear(), vec![1, 77], 300),
        ("linear, a few", linear(), vec![7, 77], 7 * 300),
        ("linear, a batch", linear(), vec![20, 77], 20 * 300),
    ];
    for (name, bytes, dims, outputs) in networks {
        let len = dims.iter().product::<usize>();
        let (x, ids) = (sparse(len, 7), (0..len as i64).map(|i| i * 67 % 200).collect::<Vec<_>>());
        let elements = match name {
            "embedding" => Elements::Int64(&ids),
            _ => Elements::Float32(&x),
        };
        let arguments = [Argument { dims: &dims, elements }];
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

/// Weights that are quantized and not pruned; kernels of enough outputs to be transformed.
#[test]
fn a_layer_that_is_not_pruned_has_no_dense_copy() {
    if !is_alone("a_layer_that_is_not_pruned_has_no_dense_copy") {
        return;
    }
    let (channels, len) = (768, 768 * 768 * 9);
    let weight =
        sparse(len, 3).iter().map(|w| if *w == 0.0 { 0.5 } else { *w }).collect::<Vec<_>>();
    let ints = [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0];
    let nodes = vec![node("conv", &[0], &["weight"], &ints, &[])];
    let image = input("x", &[-1, channels as i64, 16, 16]);
    let graph = Graph::new(vec![image], nodes, vec![1], false).unwrap();
    let dims = vec![channels, channels, 3, 3];
    let bytes = container(&graph, &[("weight", Weight::Matrix(dims, weight))]);
    let (x, mut y) = (vec![1.0; 4 * channels * 256], vec![0.0; 4 * channels * 256]);
    let elements = Elements::Float32(&x);
    let arguments = [Argument { dims: &[4, channels, 16, 16], elements }];
    let network = load(bytes, Resident::by_name("compressed").unwrap()).unwrap();
    let (_, nbytes) = allocated(|| network.run_into(&arguments, &mut [&mut y], 1).unwrap());
    let moderate = 2 * (x.len() + y.len()) * size_of::<f32>() + len * size_of::<f32>() / 2;
    assert!(nbytes < moderate, "{nbytes} bytes are allocated, expected fewer than {moderate}");
}
