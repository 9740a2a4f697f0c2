//! Networks: whole files that hold a graph, loaded and run.
//!
//! The seeds, small networks of every operator, are in `corpus/network` (`networks.py` made them).

use crate::targets::{LIMITS, Outcome, open, outcome, refused, reseal};
use tersenet::network::{Argument, Elements, InputType, Network, Resident};

/// Elements of an input, at most.
const MAX_ELEMENTS: usize = 1 << 12;

/// Loads the network of a file and runs it on inputs of the shapes that it asks for.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut bytes = bytes.to_vec();
    reseal(&mut bytes);
    let resident = [Resident::Compressed, Resident::Cached, Resident::Dense][bytes.len() % 3];
    let network = open(bytes).and_then(|reader| Network::load(&reader, resident, &LIMITS, 1));
    let network = match network {
        Ok(network) => network,
        Err(error) => return refused(&error),
    };
    let dims: Option<Vec<Vec<usize>>> = network
        .graph()
        .inputs()
        .iter()
        .map(|input| {
            // −m stands for m times the batch, which is 2.
            let side = |&side: &i64| match side {
                0.. => usize::try_from(side).ok(),
                _ => usize::try_from(side.checked_neg()?).ok()?.checked_mul(2),
            };
            let dims = input.shape.iter().map(side).collect::<Option<Vec<usize>>>()?;
            let count = dims.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))?;
            (count <= MAX_ELEMENTS).then_some(dims)
        })
        .collect();
    let Some(dims) = dims else { return 0 };
    let count = |dims: &[usize]| dims.iter().product::<usize>();
    let numbers: Vec<f32> =
        (0..MAX_ELEMENTS).map(|i| ((i * 37 % 101) as f32 - 50.0) / 16.0).collect();
    let ids: Vec<i64> = (0..MAX_ELEMENTS as i64).map(|i| i % 5).collect();
    let arguments: Vec<Argument<'_>> = network
        .graph()
        .inputs()
        .iter()
        .zip(&dims)
        .map(|(input, dims)| {
            let elements = match input.dtype {
                InputType::Float32 => Elements::Float32(&numbers[..count(dims)]),
                InputType::Int64 => Elements::Int64(&ids[..count(dims)]),
            };
            Argument { dims, elements }
        })
        .collect();
    match network.run(&arguments, 1) {
        Err(error) => refused(&error),
        Ok(outputs) => {
            let again = network.run(&arguments, 2).expect("what ran before");
            for (first, second) in outputs.iter().zip(&again) {
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&first.numbers), bits(&second.numbers));
            }
            let nodes = network.graph().nodes();
            let ends = [nodes.first(), nodes.last()].map(|node| node.map(|node| node.operator.id));
            outcome("run", (nodes.len().min(16), ends))
        }
    }
}
