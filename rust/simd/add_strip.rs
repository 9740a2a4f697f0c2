//! The products of strips of taps with tiles, as every instruction set of registers computes them.

/// Defines `add_strip` for an instruction set: the features, the register and its lanes, and the
/// intrinsics, by what they do.
///
/// Registers of sums stay in place while the weights go by: `VECTORS` for the tile, times `WEIGHTS`
/// in turn, so that additions of small tiles overlap too. Every index is known when it is compiled,
/// or they would not stay.
macro_rules! define_add_strip {
    (
        $features:literal, $vector:ty, $lanes:literal, zero $zero:ident, set $set:ident,
        load $load:ident, store $store:ident, multiply_add $multiply_add:ident, add $add:ident,
        max $max:ident, min $min:ident
    ) => {
        /// A tile of sums.
        type Sums<const VECTORS: usize> = [$vector; VECTORS];

        /// What the sums of row `row` start from.
        #[inline]
        #[target_feature(enable = $features)]
        fn start_sums<const VECTORS: usize, const LINES: usize>(
            start: Start<'_>,
            row: usize,
            (output, pitch): (&[f32], usize),
        ) -> Sums<VECTORS> {
            let mut sums = [$zero(); VECTORS];
            let (from, pitch) = match start {
                Start::Zero => return sums,
                Start::Output => (output, pitch),
                Start::Sums(all) => {
                    (&all[row * $lanes * VECTORS..][..$lanes * VECTORS], $lanes * VECTORS / LINES)
                }
            };
            for line in 0..LINES {
                let from = &from[line * pitch..][..$lanes * VECTORS / LINES];
                for (vector, part) in from.as_chunks::<$lanes>().0.iter().enumerate() {
                    // SAFETY: the reference covers as many bytes; no alignment is needed.
                    sums[line * (VECTORS / LINES) + vector] = unsafe { $load(part.as_ptr()) };
                }
            }
            sums
        }

        /// Adds what weight number `weight` makes of the input.
        ///
        /// # Safety
        /// It is in the range of a row, and the input holds a tile from every offset.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn add_weight<const VECTORS: usize, const LINES: usize>(
            rows: &CutRows<'_, impl Weights>,
            weight: usize,
            (input, pitch): (&[f32], usize),
            sums: &mut Sums<VECTORS>,
        ) {
            // SAFETY: the caller says so.
            let (offset, value) = unsafe { rows.get(weight) };
            let value = $set(value);
            for (vector, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller says so.
                unsafe {
                    let (line, at) = (vector / (VECTORS / LINES), vector % (VECTORS / LINES));
                    let place = line * pitch + $lanes * at;
                    let x = $load(input.as_ptr().byte_add(offset).add(place));
                    *sum = $multiply_add(value, x, *sum);
                }
            }
        }

        /// Finishes the sums of row `row`.
        #[inline]
        #[target_feature(enable = $features)]
        fn finish_sums<const VECTORS: usize>(
            sums: &mut Sums<VECTORS>,
            finish: Finish<'_>,
            row: usize,
        ) {
            let (scale, shift) = finish.row(row);
            let (scale, shift) = ($set(scale), $set(shift));
            let (floor, ceiling) = ($set(finish.floor), $set(finish.ceiling));
            for sum in sums {
                // In this order, NaN stays NaN.
                *sum = $min(ceiling, $max(floor, $multiply_add(*sum, scale, shift)));
            }
        }

        /// Stores the sums of a row.
        #[inline]
        #[target_feature(enable = $features)]
        fn store_sums<const VECTORS: usize, const LINES: usize>(
            sums: Sums<VECTORS>,
            (output, pitch): (&mut [f32], usize),
        ) {
            for line in 0..LINES {
                let to = &mut output[line * pitch..][..$lanes * VECTORS / LINES];
                for (vector, part) in to.as_chunks_mut::<$lanes>().0.iter_mut().enumerate() {
                    // SAFETY: the reference covers as many writable bytes.
                    unsafe { $store(part.as_mut_ptr(), sums[line * (VECTORS / LINES) + vector]) };
                }
            }
        }

        /// # Safety
        /// [`TileProduct::check`] was called for this output, the tile is the lanes times `VECTORS`,
        /// in `LINES` lines, and there are no shifts.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn add_strip<
            const VECTORS: usize,
            const WEIGHTS: usize,
            const LINES: usize,
        >(
            product: &TileProduct<'_>,
            rows: CutRows<'_, impl Weights>,
            output: &mut [f32],
        ) {
            let TileProduct { strip, start, finish, stride, grid, .. } = *product;
            let input = (product.input, grid.pitch);
            let len = (LINES - 1) * grid.output_pitch + $lanes * VECTORS / LINES;
            for (row, output) in output.chunks_mut(stride).take(strip.nrows()).enumerate() {
                let range = rows.range(row, 0);
                if LINES > 1 {
                    // Rows of a strip are apart, each too short for the CPU to see that it follows.
                    rows.prefetch(row + 4);
                }
                let output = &mut output[..len];
                if range.is_empty() && finish.is_none() && matches!(start, Start::Output) {
                    continue;
                }
                let mut acc = [[$zero(); VECTORS]; WEIGHTS];
                acc[0] = start_sums::<VECTORS, LINES>(start, row, (output, grid.output_pitch));
                let mut weight = range.start;
                while weight + WEIGHTS <= range.end {
                    for (i, acc) in acc.iter_mut().enumerate() {
                        // SAFETY: it is in the row's range; the input was checked.
                        unsafe { add_weight::<VECTORS, LINES>(&rows, weight + i, input, acc) };
                    }
                    weight += WEIGHTS;
                }
                for (i, acc) in acc.iter_mut().take(WEIGHTS - 1).enumerate() {
                    if weight + i < range.end {
                        // SAFETY: as above.
                        unsafe { add_weight::<VECTORS, LINES>(&rows, weight + i, input, acc) };
                    }
                }
                for i in 1..WEIGHTS {
                    for vector in 0..VECTORS {
                        acc[0][vector] = $add(acc[0][vector], acc[i][vector]);
                    }
                }
                if let Some(finish) = finish {
                    finish_sums(&mut acc[0], finish, row);
                }
                store_sums::<VECTORS, LINES>(acc[0], (output, grid.output_pitch));
            }
        }
    };
}

pub(super) use define_add_strip;

/// Defines `add_shifted` beside what [`define_add_strip`] defined.
macro_rules! define_add_shifted {
    (
        $features:literal, $lanes:literal, zero $zero:ident, load $load:ident, add $add:ident,
        and $and:ident, turn $turn:ident
    ) => {
        /// # Safety
        /// [`TileProduct::check`] was called for this output, and the tile is the lanes times
        /// `VECTORS`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn add_shifted<const VECTORS: usize>(
            product: &TileProduct<'_>,
            rows: CutRows<'_, impl Weights>,
            output: &mut [f32],
        ) {
            let TileProduct { strip, start, finish, stride, .. } = *product;
            let input = (product.input, 0);
            for (row, output) in output.chunks_mut(stride).take(strip.nrows()).enumerate() {
                let output = &mut output[..$lanes * VECTORS];
                let mut sums = start_sums::<VECTORS, 1>(start, row, (output, 0));
                for (part, shift) in strip.shifts().iter().enumerate() {
                    let range = rows.range(row, part);
                    if shift.by() == 0 {
                        for weight in range {
                            // SAFETY: it is in the row's range; the input was checked.
                            unsafe { add_weight::<VECTORS, 1>(&rows, weight, input, &mut sums) };
                        }
                        continue;
                    }
                    if range.is_empty() {
                        continue;
                    }
                    let mut own = [$zero(); VECTORS];
                    for weight in range {
                        // SAFETY: as above.
                        unsafe { add_weight::<VECTORS, 1>(&rows, weight, input, &mut own) };
                    }
                    let (lines, _) = shift.reach().as_chunks::<$lanes>();
                    let turn = $turn::new(shift.by());
                    // The neighbours of the tile's ends are not reached.
                    for vector in 0..VECTORS {
                        let moved = if shift.by() < 0 {
                            turn.turn(own[vector.saturating_sub(1)], own[vector])
                        } else {
                            turn.turn(own[vector], own[(vector + 1).min(VECTORS - 1)])
                        };
                        // SAFETY: the reference covers as many bytes; no alignment is needed.
                        let reach = unsafe { $load(lines[vector].as_ptr().cast()) };
                        sums[vector] = $add(sums[vector], $and(moved, reach));
                    }
                }
                if let Some(finish) = finish {
                    finish_sums(&mut sums, finish, row);
                }
                store_sums::<VECTORS, 1>(sums, (output, 0));
            }
        }
    };
}
pub(super) use define_add_shifted;
