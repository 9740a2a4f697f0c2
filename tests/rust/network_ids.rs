//! Ids on their way to an embedding: moved as integers, and refused where numbers are needed.

use crate::network::{Weight, container, input, load, node};
use tersenet::ErrorKind;
use tersenet::network::{Argument, Elements, Graph, Input, InputType, Network, Node, Resident};

/// Rows of two numbers, the second of which tells the row.
const ROWS: usize = 30;

fn ids(shape: &[i64]) -> Input {
    Input { name: "ids".into(), dtype: InputType::Int64, shape: shape.to_vec() }
}

/// A network over ids of `shape` whose last node gives the only output, held in each way.
fn networks(shape: &[i64], nodes: &[Node]) -> tersenet::Result<Vec<Network>> {
    let graph = Graph::new(vec![ids(shape)], nodes.to_vec(), vec![nodes.len()], false)?;
    let table: Vec<f32> = (0..ROWS).flat_map(|row| [1.0, row as f32]).collect();
    let weights = [
        ("table", Weight::Matrix(vec![ROWS, 2], table)),
        ("letters", Weight::Matrix(vec![4, 2], [1.0, 0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 5.0].into())),
        ("kernels", Weight::Matrix(vec![3, 2, 2], (1..13).map(|i| i as f32).collect())),
        ("first", Weight::Ids(vec![7])),
    ];
    let bytes = container(&graph, &weights);
    let all = ["compressed", "cached", "dense"].map(|way| Resident::by_name(way).unwrap());
    all.into_iter().map(|resident| load(bytes.clone(), resident)).collect()
}

/// The rows that the last node looks up, for these ids.
fn looked_up(dims: &[usize], given: &[i64], nodes: &[Node]) -> Vec<i64> {
    let mut nodes = nodes.to_vec();
    nodes.push(node("embedding", &[nodes.len()], &["table"], &[], &[]));
    let shape: Vec<i64> = dims.iter().map(|&dim| dim as i64).collect();
    let mut found: Vec<Vec<i64>> = Vec::new();
    for network in networks(&shape, &nodes).unwrap() {
        for threads in [1, 2] {
            let argument = Argument { dims, elements: Elements::Int64(given) };
            let output = network.run(&[argument], threads).unwrap().remove(0);
            found.push(output.numbers.chunks_exact(2).map(|row| row[1] as i64).collect());
        }
    }
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
    found.remove(0)
}

#[test]
fn ids_move_as_numbers_do() {
    let given: Vec<i64> = (10..22).collect();
    let one =
        |op: &str, ints: &[i64]| looked_up(&[2, 6], &given, &[node(op, &[0], &[], ints, &[])]);
    assert_eq!(one("slice", &[1, 1, 6, 2]), [11, 13, 15, 17, 19, 21]);
    assert_eq!(one("slice", &[0, -1, 2, 1]), [16, 17, 18, 19, 20, 21]);
    assert_eq!(one("permute", &[1, 0])[..5], [10, 16, 11, 17, 12]);
    assert_eq!(one("expand", &[2, 2, 6]), [&given[..], &given[..]].concat());
    assert_eq!(one("reshape", &[4, 3]), given);
    // Places that are free again are taken, those still read are not: the sixth id, then all, twice.
    let nodes = [
        node("permute", &[0], &[], &[1, 0], &[]),
        node("slice", &[1], &[], &[0, 5, 6, 1], &[]),
        node("permute", &[2], &[], &[1, 0], &[]),
        node("permute", &[1], &[], &[1, 0], &[]),
        node("concat", &[3, 4, 0], &[], &[1], &[]),
        node("slice", &[5], &[], &[0, 1, 2, 1], &[]),
    ];
    assert_eq!(
        looked_up(&[2, 6], &given, &nodes),
        [21, 16, 17, 18, 19, 20, 21, 16, 17, 18, 19, 20, 21]
    );
    let nodes = [
        node("constant", &[], &["first"], &[], &[]),
        node("expand", &[1], &[], &[2, 1], &[]),
        node("concat", &[2, 0], &[], &[1], &[]),
    ];
    let expected = [[7, 10, 11, 12, 13, 14, 15], [7, 16, 17, 18, 19, 20, 21]];
    assert_eq!(looked_up(&[2, 6], &given, &nodes), expected.concat());
}

#[test]
fn large_ids_stay_exact_and_only_those_that_are_looked_up_must_exist() {
    let slice = node("slice", &[0], &[], &[1, 0, 2, 1], &[]);
    let given = [3, 29, (1 << 53) + 1, 0, 1, -4];
    assert_eq!(looked_up(&[2, 3], &given, std::slice::from_ref(&slice)), [3, 29, 0, 1]);
    let turned = node("permute", &[0], &[], &[1, 0], &[]);
    let nodes = [turned, node("embedding", &[1], &["table"], &[], &[])];
    for network in networks(&[2, 3], &nodes).unwrap() {
        let argument = Argument { dims: &[2, 3], elements: Elements::Int64(&given) };
        let error = network.run(&[argument], 1).unwrap_err();
        let expected = "embedding (embedding): id 9007199254740993, expected in [0, 30)";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn letters_that_were_moved_are_read_by_kernels() {
    let conv = [1, 2, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0];
    let nodes = [
        node("slice", &[0], &[], &[1, 1, 4, 1], &[]),
        node("embedding", &[1], &["letters"], &[], &[]),
        node("permute", &[2], &[], &[0, 2, 1], &[]),
        node("conv", &[3], &["kernels"], &conv, &[]),
    ];
    let given = [9, 1, 3, 0, 9, 2, 0, 1];
    for network in networks(&[-1, 4], &nodes).unwrap() {
        let argument = Argument { dims: &[2, 4], elements: Elements::Int64(&given) };
        let output = network.run(&[argument], 1).unwrap().remove(0);
        assert_eq!(output.dims, [2, 3, 2]);
        // Kernels [[1, 2], [3, 4]], …; letters (0, 2), (0, 5), (1, 0) and (3, 0), (1, 0), (0, 2).
        let expected = [26.0, 17.0, 54.0, 41.0, 82.0, 65.0, 5.0, 9.0, 21.0, 21.0, 37.0, 33.0];
        assert_eq!(output.numbers, expected);
    }
}

#[test]
fn a_second_kind_of_operand_is_an_error() {
    let of = |nodes: Vec<Node>| {
        let inputs = vec![ids(&[2, 3]), input("x", &[2, 3])];
        let last = inputs.len() + nodes.len() - 1;
        let graph = Graph::new(inputs, nodes, vec![last], false).unwrap();
        let error = load(container(&graph, &[]), Resident::Cached).unwrap_err();
        (error.kind(), error.to_string())
    };
    let mixed = node("concat", &[0, 1], &[], &[1], &[]);
    let (kind, text) = of(vec![mixed]);
    assert_eq!(kind, ErrorKind::Corrupt);
    assert_eq!(text, "concat (concat): operand of float32, expected int64");
    let sum = node("binary_scalar", &[0], &[], &[0, 0, 0], &[1.0]);
    let (_, text) = of(vec![sum]);
    assert_eq!(text, "binary_scalar (binary_scalar): operand of int64, expected float32");
    let slice = node("slice", &[0], &[], &[1, 0, 2, 1], &[]);
    let (_, text) = of(vec![slice]);
    assert_eq!(text, "graph: output 2 is int64, expected float32");
}
