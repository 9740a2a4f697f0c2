//! Tensors read on several threads are those read one by one, and what is wrong is said the same.

use crate::matrices::to_bits;
use proptest::prelude::*;
use std::sync::Arc;
use tersenet::array::Owner;
use tersenet::container::{CodedArray, Dtype, Limits, Reader, Stored, Tensor, Writer};
use tersenet::layout::{Columns, Goal};
use tersenet::rows::Shape;
use tersenet::{CompressedMatrix, Error, Request, Result};

/// Archives, of which neighbours go on from each other, coded and packed matrices, plain tensors coded
/// and as they are, and other names, of about as many kept weights as `sizes` say.
fn file(sizes: &[usize]) -> Vec<u8> {
    let weights = |i: usize, nrows: usize| -> Vec<f32> {
        (0..nrows * 12)
            .map(|at| if (at * 7 + i).is_multiple_of(5) { ((at + i) % 6 + 1) as f32 } else { 0.0 })
            .collect()
    };
    let layouts = ["archive", "archive", "coded", "archive", "packed"];
    let matrices: Vec<CompressedMatrix> = (0..)
        .zip(sizes)
        .map(|(i, &nrows)| {
            let request =
                Request::parse(layouts[i % layouts.len()], "auto", Goal::Size, Columns::Coded);
            let shape = Shape::new(nrows, 12).unwrap();
            CompressedMatrix::compress(&weights(i, nrows), shape, &request.unwrap()).unwrap()
        })
        .collect();
    let plain: Vec<u8> = (0..600u32).flat_map(|i| ((i % 9) as f32).to_le_bytes()).collect();
    let coded = CodedArray::encode(&plain, Dtype::FLOAT32).unwrap().expect("fewer bytes");
    let mut writer = Writer::default();
    writer.for_size();
    for (i, matrix) in matrices.iter().enumerate() {
        let dims = [matrix.shape().nrows as u64, 12];
        writer.add(&format!("matrix{i}"), Dtype::FLOAT32, &dims, Stored::Matrix(matrix)).unwrap();
    }
    writer.add("coded", Dtype::FLOAT32, &[600], Stored::Coded(&coded)).unwrap();
    writer.add("plain", Dtype::FLOAT32, &[600], Stored::Array(&plain)).unwrap();
    writer.add_alias("other", "matrix0").unwrap();
    writer.to_bytes().unwrap()
}

fn open(bytes: Vec<u8>) -> Result<Reader> {
    let owner: Owner = Arc::new(bytes);
    Reader::from_owner(owner, &Limits::default())
}

/// What tells a tensor, or an error.
fn told(outcome: Result<Tensor>) -> std::result::Result<(&'static str, Vec<u32>), String> {
    match outcome.map_err(|e: Error| e.to_string())? {
        Tensor::Matrix(matrix) => {
            Ok((matrix.layout().name, to_bits(&matrix.decompress(1).unwrap())))
        }
        Tensor::Array(array) => {
            Ok(("", array.as_slice().iter().map(|&byte| byte.into()).collect()))
        }
    }
}

proptest! {
    #[test]
    fn several_on_any_number_of_threads_are_each_by_itself_whole_or_damaged(
        sizes in prop::collection::vec(1usize..40, 1..9),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        threads in 1usize..5,
        damage in prop::option::of((any::<prop::sample::Index>(), 1u8..)),
    ) {
        let mut bytes = file(&sizes);
        if let Some((at, flip)) = damage {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        let Ok(reader) = open(bytes) else { return Ok(()) };
        let known: Vec<&str> = reader.keys().chain(["none of that name"]).collect();
        let names: Vec<&str> = order.iter().map(|at| known[at.index(known.len())]).collect();
        let found = reader.get_each(&names, threads, |place, tensor| Ok((place, tensor))).unwrap();
        prop_assert_eq!(found.len(), names.len());
        for (place, (name, found)) in names.iter().zip(found).enumerate() {
            prop_assert!(found.as_ref().map_or(place, |found| found.0) == place);
            prop_assert_eq!(told(found.map(|found| found.1)), told(reader.get(name)), "{}", name);
        }
        let one_by_one = reader.keys().find_map(|name| reader.get(name).err());
        let all = reader.verify(threads).err();
        if let Some(first) = one_by_one {
            prop_assert_eq!(all.map(|e| e.to_string()), Some(first.to_string()));
        }
    }
}

#[test]
fn an_error_of_what_is_made_of_a_tensor_is_at_its_place() {
    let reader = open(file(&[9; 6])).unwrap();
    let names = ["matrix4", "matrix1", "plain", "matrix0"];
    let made = reader.get_each(&names, 3, |place, tensor| match tensor {
        Tensor::Matrix(matrix) => Ok(matrix.shape().nrows + place),
        Tensor::Array(_) => Err(Error::invalid(format!("place {place}"))),
    });
    let made: Vec<_> =
        made.unwrap().into_iter().map(|made| made.map_err(|e| e.to_string())).collect();
    assert_eq!(made, [Ok(9), Ok(10), Err("place 2".to_owned()), Ok(12)]);
}

#[test]
fn what_shares_a_codebook_shares_it_again() {
    let reader = open(file(&[30; 7])).unwrap();
    let names: Vec<&str> = reader.keys().filter(|name| name.starts_with("matrix")).collect();
    let made = reader.get_each(&names, 4, |_, tensor| match tensor {
        Tensor::Matrix(matrix) => Ok(matrix.codebook().unwrap().clone()),
        Tensor::Array(_) => Err(Error::invalid("no matrix")),
    });
    let codebooks: Vec<_> = made.unwrap().into_iter().collect::<Result<_>>().unwrap();
    assert!(codebooks.iter().all(|codebook| Arc::ptr_eq(codebook, &codebooks[0])));
}
