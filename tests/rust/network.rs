//! Networks: the graph's bytes, plans, a few operators against hand computations, and errors.

use proptest::prelude::*;
use std::sync::Arc;
use tersenet::array::Owner;
use tersenet::container::{Dtype, Limits, Reader, Stored, Writer};
use tersenet::network::{
    Argument, Elements, Graph, Input, InputType, Network, Node, OPERATORS, Resident,
    operator_by_name,
};
use tersenet::rows::Shape;
use tersenet::{CompressedMatrix, ErrorKind, Request};

pub fn input(name: &str, shape: &[i64]) -> Input {
    Input { name: name.to_owned(), dtype: InputType::Float32, shape: shape.to_vec() }
}

pub fn node(op: &str, inputs: &[usize], weights: &[&str], ints: &[i64], floats: &[f32]) -> Node {
    Node {
        operator: operator_by_name(op).unwrap(),
        inputs: inputs.to_vec(),
        weights: weights.iter().map(|&weight| weight.to_owned()).collect(),
        ints: ints.to_vec(),
        floats: floats.to_vec(),
        name: op.to_owned(),
    }
}

/// A tensor of a container under its name: plain, or a matrix.
pub enum Weight {
    Plain(Vec<usize>, Vec<f32>),
    Matrix(Vec<usize>, Vec<f32>),
    Ids(Vec<i64>),
}

pub fn container(graph: &Graph, weights: &[(&str, Weight)]) -> Vec<u8> {
    let made: Vec<(Vec<u8>, Option<CompressedMatrix>)> = weights
        .iter()
        .map(|(_, weight)| match weight {
            Weight::Plain(_, numbers) => {
                (numbers.iter().flat_map(|x| x.to_le_bytes()).collect(), None)
            }
            Weight::Ids(ids) => (ids.iter().flat_map(|id| id.to_le_bytes()).collect(), None),
            Weight::Matrix(dims, numbers) => {
                let shape = Shape::new(dims[0], dims[1..].iter().product()).unwrap();
                let request = Request::default();
                (Vec::new(), Some(CompressedMatrix::compress(numbers, shape, &request).unwrap()))
            }
        })
        .collect();
    let mut writer = Writer::default();
    for ((name, weight), (bytes, matrix)) in weights.iter().zip(&made) {
        let (dtype, dims) = match weight {
            Weight::Plain(dims, _) | Weight::Matrix(dims, _) => (Dtype::FLOAT32, dims.clone()),
            Weight::Ids(ids) => (Dtype::by_name("int64").unwrap(), vec![ids.len()]),
        };
        let dims: Vec<u64> = dims.iter().map(|&dim| dim as u64).collect();
        let stored = match matrix {
            Some(matrix) => Stored::Matrix(matrix),
            None => Stored::Array(bytes),
        };
        writer.add(name, dtype, &dims, stored).unwrap();
    }
    writer.set_graph(graph.to_bytes());
    writer.to_bytes().unwrap()
}

pub fn load(bytes: Vec<u8>, resident: Resident) -> tersenet::Result<Network> {
    let owner: Owner = Arc::new(bytes);
    let reader = Reader::from_owner(owner, &Limits::default())?;
    Network::load(&reader, resident, &Limits::default(), 2)
}

/// The only output of `nodes` on float inputs; the last node gives it.
fn run(
    nodes: Vec<Node>,
    weights: &[(&str, Weight)],
    inputs: &[(&[usize], &[f32])],
) -> tersenet::Result<(Vec<usize>, Vec<f32>)> {
    let shapes = inputs.iter().enumerate().map(|(i, (dims, _))| {
        input(&format!("x{i}"), &dims.iter().map(|&dim| dim as i64).collect::<Vec<_>>())
    });
    let last = inputs.len() + nodes.len() - 1;
    let graph = Graph::new(shapes.collect(), nodes, vec![last], false)?;
    let network = load(container(&graph, weights), Resident::Compressed)?;
    let arguments: Vec<Argument<'_>> = inputs
        .iter()
        .map(|(dims, numbers)| Argument { dims, elements: Elements::Float32(numbers) })
        .collect();
    let mut outputs = network.run(&arguments, 1)?;
    let output = outputs.remove(0);
    Ok((output.dims, output.numbers))
}

/// conv1 (6 of 5 × 5, relu), pool, conv2 (16 of 5 × 5, relu), pool, three linear layers.
fn lenet() -> Graph {
    let named = |name: &str, mut node: Node| {
        node.weights = node.weights.iter().map(|w| format!("{name}.{w}")).collect();
        node.name = name.to_owned();
        node
    };
    let both = ["weight", "bias"];
    let conv = [5, 5, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1];
    let pool = [2, 2, 2, 2, 0, 0, 1, 1, 0];
    let nodes = vec![
        named("conv1", node("conv", &[0], &both, &conv, &[])),
        named("pool1", node("max_pool", &[1], &[], &pool, &[])),
        named("conv2", node("conv", &[2], &both, &conv, &[])),
        named("pool2", node("max_pool", &[3], &[], &pool, &[])),
        node("reshape", &[4], &[], &[-1, 256], &[]),
        named("fc1", node("linear", &[5], &both, &[1], &[])),
        named("fc2", node("linear", &[6], &both, &[1], &[])),
        named("fc3", node("linear", &[7], &both, &[0], &[])),
    ];
    Graph::new(vec![input("x", &[-1, 1, 28, 28])], nodes, vec![8], false).unwrap()
}

/// Numbers between −1 and 1, two thirds of them zero.
pub fn sparse(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    (0..len).map(|_| if next() % 3 > 0 { 0.0 } else { (next() % 31) as f32 / 15.0 - 1.0 }).collect()
}

pub fn lenet_container() -> Vec<u8> {
    let sizes = [
        ("conv1", vec![6, 1, 5, 5]),
        ("conv2", vec![16, 6, 5, 5]),
        ("fc1", vec![120, 256]),
        ("fc2", vec![84, 120]),
        ("fc3", vec![10, 84]),
    ];
    let names: Vec<String> = sizes
        .iter()
        .flat_map(|(name, _)| [format!("{name}.weight"), format!("{name}.bias")])
        .collect();
    let weights: Vec<(&str, Weight)> = names
        .iter()
        .zip(sizes.iter().flat_map(|size| [size, size]))
        .enumerate()
        .map(|(i, (name, (_, dims)))| {
            let weight = if name.ends_with("weight") {
                Weight::Matrix(dims.clone(), sparse(dims.iter().product(), i as u32))
            } else {
                Weight::Plain(vec![dims[0]], sparse(dims[0], i as u32))
            };
            (name.as_str(), weight)
        })
        .collect();
    container(&lenet(), &weights)
}

#[test]
fn a_small_networks_graph_takes_few_bytes_and_comes_back() {
    let graph = lenet();
    let bytes = graph.to_bytes();
    assert!(bytes.len() < 250, "{} bytes", bytes.len());
    assert_eq!(Graph::from_bytes(&bytes).unwrap(), graph);
}

fn any_graph() -> impl Strategy<Value = Graph> {
    let text = "[a-z.é]{0,6}";
    let node = (0..OPERATORS.len(), text, any::<[i64; 16]>(), any::<[f32; 3]>(), any::<[u8; 8]>());
    let input = (text, any::<bool>(), prop::collection::vec(any::<i64>(), 0..5));
    (
        prop::collection::vec(input, 1..4),
        prop::collection::vec(node, 0..8),
        prop::collection::vec(any::<u8>(), 1..4),
    )
        .prop_map(|(inputs, nodes, outputs)| {
            let inputs: Vec<Input> = inputs
                .into_iter()
                .map(|(name, is_ids, shape)| Input {
                    name,
                    dtype: if is_ids { InputType::Int64 } else { InputType::Float32 },
                    shape,
                })
                .collect();
            let mut made = Vec::new();
            for (operator, name, ints, floats, picks) in nodes {
                let operator = &OPERATORS[operator];
                let values = inputs.len() + made.len();
                let between = |(least, most): (usize, usize)| least.max(most.min(4));
                let weights = (0..operator.weights.1).map(|i| match (i, picks[i] % 3) {
                    (i, 0) if i >= operator.weights.0 => String::new(),
                    (_, 1) => format!("{name}.w"),
                    _ => "other".to_owned(),
                });
                made.push(Node {
                    operator,
                    inputs: (0..between(operator.inputs))
                        .map(|i| usize::from(picks[i]) % values)
                        .collect(),
                    weights: weights.collect(),
                    ints: ints[..operator.ints.0.max(operator.ints.1.min(5))].to_vec(),
                    floats: floats[..operator.floats].to_vec(),
                    name,
                });
            }
            let values = inputs.len() + made.len();
            let outputs = outputs.iter().map(|&o| usize::from(o) % values).collect();
            Graph::new(inputs, made, outputs, true).unwrap()
        })
}

proptest! {
    #[test]
    fn a_graph_comes_back_and_damage_is_an_error_or_another_graph(
        graph in any_graph(), flips in prop::collection::vec((any::<u16>(), any::<u8>()), 20)
    ) {
        let bytes = graph.to_bytes();
        // As bytes, since a NaN differs from itself.
        prop_assert_eq!(&Graph::from_bytes(&bytes).unwrap().to_bytes(), &bytes);
        for end in 0..bytes.len() {
            prop_assert!(Graph::from_bytes(&bytes[..end]).is_err());
        }
        for (at, byte) in flips {
            let mut damaged = bytes.clone();
            damaged[usize::from(at) % bytes.len()] = byte;
            if let Ok(graph) = Graph::from_bytes(&damaged) {
                prop_assert_eq!(graph.to_bytes().len() <= damaged.len() + 64, true);
            }
        }
    }
}

#[test]
fn a_damaged_graph_never_panics_when_it_is_loaded_and_run() {
    let original = lenet().to_bytes();
    let bytes = lenet_container();
    let at = bytes.windows(original.len()).position(|window| window == original).unwrap();
    let limits = Limits { tensor_nbytes: 1 << 24, ..Limits::default() };
    let x = sparse(28 * 28, 1);
    let argument = Argument { dims: &[1, 1, 28, 28], elements: Elements::Float32(&x) };
    let mut ran = 0;
    for place in 0..original.len() {
        for byte in [0, 1, 2, 3, 5, 15, 16, 63, 127, 128, 255] {
            let mut damaged = bytes.clone();
            damaged[at + place] = byte;
            let header = u32::from_le_bytes(damaged[8..12].try_into().unwrap()) as usize;
            let checksum = crc32fast::hash(&damaged[16..16 + header]);
            damaged[12..16].copy_from_slice(&checksum.to_le_bytes());
            let owner: Owner = Arc::new(damaged);
            let Ok(reader) = Reader::from_owner(owner, &limits) else { continue };
            let Ok(network) = Network::load(&reader, Resident::Compressed, &limits, 1) else {
                continue;
            };
            ran += usize::from(network.run(&[argument], 1).is_ok());
        }
    }
    assert!(ran > 0);
}

#[test]
fn a_lenet_gives_the_same_in_every_way_to_hold_it_and_for_any_threads() {
    let bytes = lenet_container();
    let x = sparse(5 * 28 * 28, 7);
    let argument = Argument { dims: &[5, 1, 28, 28], elements: Elements::Float32(&x) };
    let mut all = Vec::new();
    for resident in [Resident::Compressed, Resident::Cached, Resident::Dense] {
        let network = load(bytes.clone(), resident).unwrap();
        assert_eq!(network.layers().count(), 5);
        let first = network.run(&[argument], 1).unwrap();
        assert_eq!(first[0].dims, [5, 10]);
        for threads in [1, 2, 3, 8] {
            assert_eq!(network.run(&[argument], threads).unwrap(), first);
        }
        let mut into = vec![0.0; 50];
        network.run_into(&[argument], &mut [&mut into], 2).unwrap();
        assert_eq!(into, first[0].numbers);
        all.push(first[0].numbers.clone());
    }
    for other in &all[1..] {
        for (a, b) in other.iter().zip(&all[0]) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
        }
    }
    let compressed = load(bytes.clone(), Resident::Compressed).unwrap();
    assert!(compressed.nbytes() < load(bytes, Resident::Dense).unwrap().nbytes());
}

#[test]
fn weights_that_a_run_keeps_are_counted() {
    let x = sparse(2 * 28 * 28, 5);
    for (resident, is_kept) in
        [(Resident::Compressed, false), (Resident::Cached, true), (Resident::Dense, true)]
    {
        let network = load(lenet_container(), resident).unwrap();
        let loaded = network.nbytes();
        let layers: usize = network.layers().map(|layer| layer.nbytes).sum();
        let argument = Argument { dims: &[2, 1, 28, 28], elements: Elements::Float32(&x) };
        network.run(&[argument], 1).unwrap();
        let kept = network.nbytes() - loaded;
        assert_eq!(kept > 0, is_kept, "{resident:?} keeps {kept} bytes");
        let after: usize = network.layers().map(|layer| layer.nbytes).sum();
        assert_eq!(after - layers, kept, "{resident:?}");
    }
}

#[test]
fn many_threads_share_a_network_on_several_shapes() {
    let network = load(lenet_container(), Resident::Cached).unwrap();
    let x = sparse(6 * 28 * 28, 9);
    let whole = |batch: usize| {
        let dims = [batch, 1, 28, 28];
        let elements = Elements::Float32(&x[..batch * 28 * 28]);
        network.run(&[Argument { dims: &dims, elements }], 1).unwrap()
    };
    let expected: Vec<_> = (0..7).map(whole).collect();
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (expected, whole) = (&expected, &whole);
            scope.spawn(move || {
                for i in 0..28 {
                    assert_eq!(whole((start + i) % 7), expected[(start + i) % 7]);
                }
            });
        }
    });
}

#[test]
fn a_plan_reuses_places_and_works_in_place() {
    let unary = |from: usize| node("unary", &[from], &[], &[1], &[]);
    let chain: Vec<Node> = (0..10).map(unary).collect();
    let x = [-1.0, 2.0, -3.0, 4.0];
    let argument = Argument { dims: &[4], elements: Elements::Float32(&x) };
    let graph = Graph::new(vec![input("x", &[-1])], chain, vec![10], false).unwrap();
    let network = load(container(&graph, &[]), Resident::Compressed).unwrap();
    assert_eq!(network.workspace_numbers(&[argument]).unwrap(), 4);
    assert_eq!(network.run(&[argument], 1).unwrap()[0].numbers, [0.0, 2.0, 0.0, 4.0]);

    // A value that is read again later is not overwritten: y = relu(−x) + −x, and −x itself.
    let nodes = vec![
        node("unary", &[0], &[], &[16], &[]),
        node("unary", &[1], &[], &[1], &[]),
        node("binary", &[2, 1], &[], &[0, 0], &[]),
        node("reshape", &[1], &[], &[2, 2], &[]),
        node("permute", &[4], &[], &[1, 0], &[]),
    ];
    let graph = Graph::new(vec![input("x", &[4])], nodes, vec![3, 4, 5], true).unwrap();
    let network = load(container(&graph, &[]), Resident::Compressed).unwrap();
    let outputs = network.run(&[argument], 1).unwrap();
    assert_eq!(outputs[0].numbers, [2.0, -2.0, 6.0, -4.0]);
    assert_eq!(outputs[1].numbers, [1.0, -2.0, 3.0, -4.0]);
    assert_eq!(outputs[2].numbers, [1.0, 3.0, -2.0, -4.0]);
}

#[test]
fn weighted_layers_are_their_definitions() {
    // 1-d: taps 1, 2 over [1, 2, 3, 4] with a zero before; act is relu, scale −1 and 1.
    let conv = [1, 2, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1];
    let weights = [
        ("w", Weight::Matrix(vec![2, 1, 2], vec![1.0, 2.0, 0.0, 1.0])),
        ("scale", Weight::Plain(vec![2], vec![-1.0, 1.0])),
        ("shift", Weight::Plain(vec![2], vec![6.0, -1.5])),
    ];
    let x = [1.0, 2.0, 3.0, 4.0];
    let conv = node("conv", &[0], &["w", "", "scale", "shift"], &conv, &[]);
    let (dims, y) = run(vec![conv], &weights, &[(&[1, 1, 4], &x)]).unwrap();
    assert_eq!(dims, [1, 2, 4]);
    // Sums 2, 5, 8, 11 and 1, 2, 3, 4.
    assert_eq!(y, [4.0, 1.0, 0.0, 0.0, 0.0, 0.5, 1.5, 2.5]);

    // Transposed, stride 2, taps 1, 2, 3 (turned round: 3, 2, 1): 1 2 3+2 4 6+3 6 9
    let transposed = [1, 3, 1, 2, 0, 0, 0, 0, 1, 1, 1, 0];
    let weights = [("w", Weight::Matrix(vec![1, 1, 3], vec![3.0, 2.0, 1.0]))];
    let transposed = node("conv_transpose", &[0], &["w"], &transposed, &[]);
    let (dims, y) = run(vec![transposed], &weights, &[(&[1, 1, 3], &x[..3])]).unwrap();
    assert_eq!((dims, y), (vec![1, 1, 7], vec![1.0, 2.0, 5.0, 4.0, 9.0, 6.0, 9.0]));

    let weights = [
        ("w", Weight::Plain(vec![2, 2], vec![1.0, 2.0, 3.0, 4.0])),
        ("b", Weight::Plain(vec![2], vec![0.5, -20.0])),
    ];
    let linear = node("linear", &[0], &["w", "b"], &[1], &[]);
    let (dims, y) = run(vec![linear], &weights, &[(&[2, 1, 2], &x)]).unwrap();
    assert_eq!((dims, y), (vec![2, 1, 2], vec![5.5, 0.0, 11.5, 5.0]));

    let weights = [
        ("ids", Weight::Ids(vec![2, 0])),
        ("w", Weight::Matrix(vec![3, 2], vec![1.0, 2.0, 0.0, 4.0, 5.0, 0.0])),
    ];
    let nodes =
        vec![node("constant", &[], &["ids"], &[], &[]), node("embedding", &[1], &["w"], &[], &[])];
    let (dims, y) = run(nodes, &weights, &[(&[1], &x[..1])]).unwrap();
    assert_eq!((dims, y), (vec![2, 2], vec![5.0, 0.0, 1.0, 2.0]));
}

/// Texts `[texts, len]`, read by kernels some letters wide.
fn texts(len: usize, conv: &[i64], then: Vec<Node>, outputs: Vec<usize>) -> Graph {
    let mut nodes = vec![
        node("embedding", &[0], &["letters"], &[], &[]),
        node("permute", &[1], &[], &[0, 2, 1], &[]),
        node("conv", &[2], &["kernels", "bias"], conv, &[]),
    ];
    nodes.extend(then);
    let ids = Input { name: "ids".into(), dtype: InputType::Int64, shape: vec![-1, len as i64] };
    Graph::new(vec![ids], nodes, outputs, true).unwrap()
}

proptest! {
    #[test]
    fn texts_read_by_kernels_are_the_same_however_weights_are_held(
        letters in 1usize..12, channels in 1usize..20, nrows in 1usize..20, taps in 1usize..9,
        stride in 1usize..4, dilation in 1usize..3, padding in [0usize..4, 0usize..4], more in 0usize..50,
        count in 0usize..4, activation in 0i64..3, threads in 1usize..4, seed in any::<u32>(),
    ) {
        let span = (taps - 1) * dilation + 1;
        let len = span.saturating_sub(padding[0] + padding[1]).max(1) + more;
        let ints = [1, taps, 1, stride, 0, 0, padding[0], padding[1], 1, dilation, 1].map(|n| n as i64);
        let conv: Vec<i64> = ints.into_iter().chain([activation]).collect();
        let graph = texts(len, &conv, vec![], vec![3]);
        let table = sparse(letters * channels, seed);
        let kernels = sparse(nrows * channels * taps, seed ^ 5);
        let bias = sparse(nrows, seed ^ 9);
        let weights = [
            ("letters", Weight::Matrix(vec![letters, channels], table.clone())),
            ("kernels", Weight::Matrix(vec![nrows, channels, taps], kernels.clone())),
            ("bias", Weight::Plain(vec![nrows], bias.clone())),
        ];
        let bytes = container(&graph, &weights);
        let ids: Vec<i64> = sparse(count * len, seed ^ 7)
            .iter()
            .enumerate()
            .map(|(i, x)| ((x.abs() * 15.0) as i64 + i as i64) % letters as i64)
            .collect();
        let dims = [count, len];
        let arguments = [Argument { dims: &dims, elements: Elements::Int64(&ids) }];
        let positions = (len + padding[0] + padding[1] - span) / stride + 1;
        for resident in ["compressed", "cached", "dense"] {
            let network = load(bytes.clone(), Resident::by_name(resident).unwrap()).unwrap();
            let y = network.run(&arguments, 1).unwrap().remove(0);
            prop_assert_eq!(&y.dims, &[count, nrows, positions]);
            let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
            let again = network.run(&arguments, threads).unwrap().remove(0);
            prop_assert_eq!(bits(&again.numbers), bits(&y.numbers));
            for (at, &y) in y.numbers.iter().enumerate() {
                let (text, row, position) =
                    (at / positions / nrows, at / positions % nrows, at % positions);
                let (mut sum, mut total) = (f64::from(bias[row]), f64::from(bias[row].abs()));
                for (channel, tap) in (0..channels).flat_map(|c| (0..taps).map(move |t| (c, t))) {
                    let place = (position * stride + tap * dilation).checked_sub(padding[0]);
                    let Some(place) = place.filter(|&place| place < len) else { continue };
                    let letter = ids[text * len + place] as usize;
                    let term = f64::from(table[letter * channels + channel])
                        * f64::from(kernels[(row * channels + channel) * taps + tap]);
                    sum += term;
                    total += term.abs();
                }
                let exact = match activation {
                    1 => sum.max(0.0),
                    2 => sum.clamp(0.0, 6.0),
                    _ => sum,
                };
                let bound = (channels * taps + 3) as f64 * 2f64.powi(-24) * total;
                prop_assert!((f64::from(y) - exact).abs() <= bound, "{resident} {at}: {y}, expected {exact}");
            }
        }
    }
}

#[test]
fn letters_are_multiplied_beforehand_only_where_that_pays_and_nothing_else_reads_them() {
    let conv = [1, 3, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1];
    let weights = |letters: usize| {
        [
            ("letters", Weight::Matrix(vec![letters, 8], sparse(letters * 8, 1))),
            ("kernels", Weight::Matrix(vec![6, 8, 3], sparse(6 * 24, 2))),
            ("bias", Weight::Plain(vec![6], sparse(6, 3))),
        ]
    };
    let products = |graph: &Graph, letters: usize, resident: Resident| {
        let network = load(container(graph, &weights(letters)), resident).unwrap();
        let ids = [0, 1, 2, 1, 0];
        let arguments = [Argument { dims: &[1, 5], elements: Elements::Int64(&ids) }];
        let before = network.nbytes();
        let places: Vec<String> = network.layers().map(|layer| layer.place.to_owned()).collect();
        assert_eq!(places, ["embedding", "conv"]);
        let outputs = network.run(&arguments, 1).unwrap();
        let stored = load(container(graph, &weights(letters)), Resident::Compressed).unwrap();
        for (found, expected) in outputs.iter().zip(stored.run(&arguments, 1).unwrap()) {
            assert_eq!(found.dims, expected.dims);
            let pairs = found.numbers.iter().zip(&expected.numbers);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
        }
        let error = network
            .run(&[Argument { dims: &[1, 5], elements: Elements::Int64(&[0, 0, -1, 0, 0]) }], 1)
            .unwrap_err();
        assert!(
            error.to_string().ends_with(&format!("id -1, expected in [0, {letters})")),
            "{error}"
        );
        // Decoded kernels are kept from the first run on, products from the start.
        before > stored.nbytes() + 4 * 3 * letters * 6 - 1 && network.nbytes() == before
    };
    let alone = texts(5, &conv, vec![], vec![3]);
    assert!(products(&alone, 7, Resident::Cached));
    assert!(products(&alone, 7, Resident::Dense));
    assert!(!products(&alone, 7, Resident::Compressed));
    assert!(!products(&alone, 50, Resident::Cached), "more products than weights");
    let read_twice = texts(5, &conv, vec![], vec![3, 2]);
    assert!(!products(&read_twice, 7, Resident::Cached));
    let turned = node("unary", &[1], &[], &[1], &[]);
    let read_by_another = texts(5, &conv, vec![turned], vec![3, 4]);
    assert!(!products(&read_by_another, 7, Resident::Cached));
}

#[test]
fn pools_keep_to_their_windows() {
    let x: Vec<f32> = (1..=5).map(|i| i as f32).collect();
    let pool = |op: &str, ints: &[i64]| {
        run(vec![node(op, &[0], &[], ints, &[])], &[], &[(&[1, 1, 5], &x)]).unwrap().1
    };
    // Windows of 2 by steps of 2: the last one holds 5 alone, in ceil mode only.
    assert_eq!(pool("max_pool", &[1, 2, 1, 2, 0, 0, 1, 1, 0]), [2.0, 4.0]);
    assert_eq!(pool("max_pool", &[1, 2, 1, 2, 0, 0, 1, 1, 1]), [2.0, 4.0, 5.0]);
    assert_eq!(pool("max_pool", &[1, 2, 1, 1, 0, 0, 1, 3, 0]), [4.0, 5.0]);
    assert_eq!(pool("avg_pool", &[1, 2, 1, 2, 0, 1, 0, 1, 0]), [0.5, 2.5, 4.5]);
    assert_eq!(pool("avg_pool", &[1, 2, 1, 2, 0, 1, 0, 0, 0]), [1.0, 2.5, 4.5]);
    assert_eq!(pool("avg_pool", &[1, 2, 1, 2, 0, 0, 1, 1, 4]), [0.75, 1.75, 1.25]);
    // Bins 0..3 and 2..5.
    assert_eq!(pool("adaptive_avg_pool", &[1, 2]), [2.0, 4.0]);
    assert_eq!(pool("adaptive_max_pool", &[1, 2]), [3.0, 5.0]);
}

#[test]
fn numbers_move_where_they_should() {
    let x: Vec<f32> = (0..6).map(|i| i as f32).collect();
    let moved = |op: &str, ints: &[i64], floats: &[f32]| {
        run(vec![node(op, &[0], &[], ints, floats)], &[], &[(&[2, 3], &x)]).unwrap()
    };
    assert_eq!(moved("permute", &[1, 0], &[]).1, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(moved("slice", &[1, -2, i64::MAX, 1], &[]).1, [1.0, 2.0, 4.0, 5.0]);
    assert_eq!(moved("slice", &[1, 0, 3, 2], &[]).1, [0.0, 2.0, 3.0, 5.0]);
    assert_eq!(moved("expand", &[2, 2, 3], &[]).1, [x.clone(), x.clone()].concat());
    assert_eq!(
        moved("pad", &[0, 0, 0, 1, 1], &[9.0]).1,
        [9.0, 0.0, 1.0, 2.0, 9.0, 9.0, 3.0, 4.0, 5.0, 9.0]
    );
    assert_eq!(moved("pad", &[0, 0, -1, -1, 1], &[9.0]).1, [1.0, 2.0, 9.0]);
    assert_eq!(
        moved("pad", &[1, 0, 0, 2, 1], &[0.0]).1,
        [2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 5.0, 4.0, 3.0, 4.0, 5.0, 4.0]
    );
    assert_eq!(moved("pad", &[2, 0, 0, 1, 1], &[0.0]).1[..5], [0.0, 0.0, 1.0, 2.0, 2.0]);
    assert_eq!(moved("pad", &[3, 0, 0, 1, 1], &[0.0]).1[..5], [2.0, 0.0, 1.0, 2.0, 0.0]);
    assert_eq!(moved("reduce", &[0, 0, 0, 1], &[]), (vec![], vec![2.5]));
    assert_eq!(moved("reduce", &[1, 1, 0], &[]), (vec![1, 3], vec![3.0, 4.0, 5.0]));
    let cat = node("concat", &[0, 0], &[], &[1], &[]);
    let (dims, y) = run(vec![cat], &[], &[(&[2, 3], &x)]).unwrap();
    assert_eq!((dims, &y[..7]), (vec![2, 6], &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 3.0][..]));
    let up = node("upsample", &[0], &[], &[1, 0, 1, 4], &[]);
    let (_, y) = run(vec![up], &[], &[(&[1, 1, 2], &[0.0, 1.0])]).unwrap();
    assert_eq!(y, [0.0, 0.25, 0.75, 1.0]);
}

#[test]
fn operands_broadcast_as_numpy_does() {
    let (a, b) = ([1.0, 2.0, 3.0], [10.0, 20.0]);
    let sum = node("binary", &[0, 1], &[], &[0, 0], &[]);
    let (dims, y) = run(vec![sum], &[], &[(&[1, 3], &a), (&[2, 1, 1], &b)]).unwrap();
    assert_eq!((dims, y), (vec![2, 1, 3], vec![11.0, 12.0, 13.0, 21.0, 22.0, 23.0]));
    let less = node("binary_scalar", &[0], &[], &[1, 1, 0], &[1.0]);
    assert_eq!(run(vec![less], &[], &[(&[3], &a)]).unwrap().1, [0.0, -1.0, -2.0]);
    let nan = node("binary", &[0, 1], &[], &[4, 0], &[]);
    let (_, y) =
        run(vec![nan], &[], &[(&[2], &[f32::NAN, 1.0]), (&[2], &[1.0, f32::NAN])]).unwrap();
    assert!(y.iter().all(|y| y.is_nan()));
}

#[test]
fn attention_is_its_definition() {
    let (q, k) = ([1.0, 0.0, 0.0, 1.0], [2.0, 0.0, 0.0, 4.0]);
    let v = [1.0, 2.0];
    let dims: &[usize] = &[1, 2, 2];
    let attend = |ints: &[i64], mask: Option<&[f32]>| {
        let inputs: Vec<(&[usize], &[f32])> =
            [(dims, &q[..]), (dims, &k[..]), (&[1, 2, 1], &v[..])]
                .into_iter()
                .chain(mask.map(|mask| (&[2, 2][..], mask)))
                .collect();
        let all: Vec<usize> = (0..inputs.len()).collect();
        run(vec![node("attention", &all, &[], ints, &[1.0])], &[], &inputs).unwrap().1
    };
    // Scores [2, 0] and [0, 4].
    let of = |a: f32, b: f32| (a.exp() + 2.0 * b.exp()) / (a.exp() + b.exp());
    let close = |found: &[f32], expected: [f32; 2]| {
        let pairs = found.iter().zip(expected);
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
    };
    close(&attend(&[0, 0], None), [of(2.0, 0.0), of(0.0, 4.0)]);
    close(&attend(&[1, 0], None), [1.0, of(0.0, 4.0)]);
    let gone = f32::NEG_INFINITY;
    close(&attend(&[0, 0], Some(&[gone, gone, gone, 0.0])), [0.0, 2.0]);
}

#[test]
fn errors_name_the_node_or_the_input_with_what_was_found_and_expected() {
    let network = load(lenet_container(), Resident::Cached).unwrap();
    let x = vec![0.0; 27 * 28];
    let argument = Argument { dims: &[1, 1, 27, 28], elements: Elements::Float32(&x) };
    let error = network.run(&[argument], 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input x: shape [1, 1, 27, 28], expected [batch, 1, 28, 28] for a batch of 1"
    );
    let error = network.run(&[], 1).unwrap_err();
    assert_eq!(error.to_string(), "inputs: 0 of them, expected 1");

    let of = |nodes: Vec<Node>, weights: &[(&str, Weight)]| {
        let error = run(nodes, weights, &[(&[2, 3], &[0.0; 6])]).unwrap_err();
        (error.kind(), error.to_string())
    };
    let weights = || [("w", Weight::Plain(vec![2, 4], vec![0.0; 8]))];
    assert_eq!(
        of(vec![node("linear", &[0], &["w"], &[0], &[])], &weights()),
        (
            ErrorKind::InvalidArgument,
            "linear (linear): input of shape [2, 3], expected [..., 4]".into()
        )
    );
    let (kind, text) = of(vec![node("linear", &[0], &["v"], &[0], &[])], &weights());
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(text.starts_with("linear (linear): \"v\": no tensor"), "{text}");
    let (kind, text) = of(vec![node("linear", &[0], &["w", "w"], &[0], &[])], &weights());
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(text.contains("8 numbers, expected nrows = 2"), "{text}");
    let (_, text) = of(vec![node("embedding", &[0], &["w"], &[], &[])], &weights());
    assert_eq!(text, "embedding (embedding): operand of float32, expected int64");
    let (kind, text) = of(vec![node("unary", &[0], &[], &[22], &[])], &[]);
    assert_eq!(kind, ErrorKind::Corrupt);
    assert_eq!(text, "unary (unary): activation 22, expected 0 to 21");
    let (_, text) = of(vec![node("unary", &[1], &[], &[1], &[])], &[]);
    assert!(text.contains("takes value 1, expected one of the 1 before it"), "{text}");
    let (_, text) = of(vec![node("unary", &[0], &[], &[], &[])], &[]);
    assert!(text.contains("0 ints, expected 1 to 1"), "{text}");
    let (kind, text) = of(vec![node("expand", &[0], &[], &[1 << 40, 2, 3], &[])], &[]);
    assert_eq!(kind, ErrorKind::LimitExceeded, "{text}");
}

#[test]
fn rows_that_an_input_of_three_dimensions_has_no_room_for_are_an_error() {
    // A row of padding above gives two rows of outputs.
    let conv = [1, 2, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1];
    let weights = [("w", Weight::Matrix(vec![2, 1, 2], vec![1.0, 2.0, 0.0, 1.0]))];
    let conv = node("conv", &[0], &["w"], &conv, &[]);
    let error = run(vec![conv], &weights, &[(&[1, 1, 4], &[1.0; 4])]).unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string()),
        (
            ErrorKind::InvalidArgument,
            "conv (conv): result of 2 rows, expected 1 for an input of three dimensions".into()
        )
    );
}

#[test]
fn every_operator_is_in_a_network_that_fuzzing_starts_from() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/network");
    let mut found = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let owner: Owner = Arc::new(std::fs::read(entry.unwrap().path()).unwrap());
        // What failed once is in there, too, and need not be a network.
        let Ok(reader) = Reader::from_owner(owner, &Limits::default()) else { continue };
        let graph = reader.graph().and_then(|bytes| Graph::from_bytes(bytes).ok());
        found.extend(graph.iter().flat_map(|graph| graph.nodes()).map(|node| node.operator.name));
    }
    let missing: Vec<&str> =
        OPERATORS.iter().map(|spec| spec.name).filter(|name| !found.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
