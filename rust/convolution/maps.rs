//! Where outputs go.

use std::ops::Range;

/// The outputs of the images of a group, some rows of each.
pub(super) struct Maps<'y> {
    images: Images<'y>,
    /// Numbers of a row.
    area: usize,
    /// The row from which on they are asked for.
    pub(super) first: usize,
}

enum Images<'y> {
    /// Next to each other, so many numbers each.
    Whole(&'y mut [f32], usize),
    /// Apart.
    Parts(Vec<&'y mut [f32]>),
}

impl<'y> Maps<'y> {
    /// All rows of all images, `image` numbers each.
    pub(super) fn whole(y: &'y mut [f32], image: usize, area: usize) -> Self {
        Self { images: Images::Whole(y, image), area, first: 0 }
    }

    /// Some rows of each image.
    pub(super) fn parts(parts: Vec<&'y mut [f32]>, area: usize) -> Self {
        Self { images: Images::Parts(parts), area, first: 0 }
    }

    /// Image `number` from row `first` on; none where the last group has fewer images.
    pub(super) fn get(&mut self, number: usize) -> Option<&mut [f32]> {
        let image = match &mut self.images {
            Images::Whole(y, image) => y.get_mut(number * *image..(number + 1) * *image)?,
            Images::Parts(parts) => parts.get_mut(number)?,
        };
        image.get_mut(self.first * self.area..)
    }

    /// A part of each of some images from `start` on, from row `first` on.
    ///
    /// # Panics
    /// When there are fewer.
    pub(super) fn some<const N: usize>(
        &mut self,
        start: usize,
        part: Range<usize>,
    ) -> [&mut [f32]; N] {
        let from = self.first * self.area;
        let part = from + part.start..from + part.end;
        match &mut self.images {
            Images::Whole(y, image) => {
                let mut images = y[start * *image..].chunks_exact_mut(*image);
                std::array::from_fn(|_| {
                    &mut images.next().expect("maps: as many images")[part.clone()]
                })
            }
            Images::Parts(parts) => {
                let mut parts = parts[start..].iter_mut();
                std::array::from_fn(|_| {
                    &mut parts.next().expect("maps: as many images")[part.clone()]
                })
            }
        }
    }
}
