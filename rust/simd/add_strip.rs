//! The products of strips of taps with tiles, as every instruction set of registers computes them.

/// Defines `add_strip` for an instruction set: the features, the register and its lanes, the
/// intrinsics, by what they do, the rows that it takes, and what gives the offset of a weight in bytes
/// and a register of its value.
///
/// Registers of sums stay in place while the weights go by: `VECTORS` for the tile, times `WEIGHTS`
/// in turn, so that additions of small tiles overlap too. Every index is known when it is compiled,
/// or they would not stay.
macro_rules! define_add_strip {
    (
        $features:literal, $vector:ty, $lanes:literal, zero $zero:ident, set $set:ident,
        load $load:ident, store $store:ident, multiply_add $multiply_add:ident, add $add:ident,
        max $max:ident, min $min:ident, rows $of_rows:ty, weight $of_weight:expr
    ) => {
        /// A tile of sums.
        pub(super) type Sums<const VECTORS: usize> = [$vector; VECTORS];

        /// What the sums of the first row start from, if not from 0, how far apart rows are there,
        /// and how far lines.
        #[inline(always)]
        pub(super) fn starts(
            product: &TileProduct<'_>,
            output: *mut f32,
        ) -> Option<(*const f32, [usize; 2])> {
            let TileProduct { size, start, stride, grid, .. } = product;
            match start {
                Start::Zero => None,
                Start::Output => Some((output.cast_const(), [*stride, grid.output_pitch])),
                Start::Sums(sums) => Some((sums.as_ptr(), [*size, size / grid.lines])),
            }
        }

        /// The sums at `from`, in lines `pitch` apart.
        ///
        /// # Safety
        /// A tile is there.
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn load_sums<const VECTORS: usize, const LINES: usize>(
            from: *const f32,
            pitch: usize,
        ) -> Sums<VECTORS> {
            let mut sums = [$zero(); VECTORS];
            for (vector, sum) in sums.iter_mut().enumerate() {
                let (line, at) = (vector / (VECTORS / LINES), vector % (VECTORS / LINES));
                // SAFETY: the caller says so; no alignment is needed.
                *sum = unsafe { $load(from.add(line * pitch + $lanes * at)) };
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
            rows: &$of_rows,
            weight: usize,
            (input, pitch): (&[f32], usize),
            sums: &mut Sums<VECTORS>,
        ) {
            // SAFETY: the caller says so.
            let (offset, value) = unsafe { $of_weight(rows, weight) };
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
        pub(super) fn finish_sums<const VECTORS: usize>(
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

        /// Stores the sums of a row, in lines `pitch` apart.
        ///
        /// # Safety
        /// A tile may be written there.
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn store_sums<const VECTORS: usize, const LINES: usize>(
            sums: Sums<VECTORS>,
            to: *mut f32,
            pitch: usize,
        ) {
            for (vector, sum) in sums.into_iter().enumerate() {
                let (line, at) = (vector / (VECTORS / LINES), vector % (VECTORS / LINES));
                // SAFETY: the caller says so; no alignment is needed.
                unsafe { $store(to.add(line * pitch + $lanes * at), sum) };
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
            rows: $of_rows,
            output: &mut [f32],
        ) {
            let TileProduct { strip, finish, stride, grid, .. } = *product;
            // Known when it is compiled, where there are many.
            let is_column = VECTORS * $lanes / LINES == COLUMN;
            let pitch = if is_column { COLUMN_PITCH } else { grid.pitch };
            let input = (product.input, pitch);
            let mut to = output.as_mut_ptr();
            let starts = starts(product, to);
            let (mut from, [from_stride, from_pitch]) = starts.unwrap_or((to, [0, 0]));
            let is_unchanged = matches!(product.start, Start::Output) && finish.is_none();
            for row in 0..strip.nrows() {
                let range = rows.range(row, 0);
                if LINES > 1 {
                    // Rows of a strip are apart, each too short for the CPU to see that it follows.
                    rows.prefetch(row + 4);
                }
                if !(is_unchanged && range.is_empty()) {
                    let mut acc = [[$zero(); VECTORS]; WEIGHTS];
                    if starts.is_some() {
                        // SAFETY: the output, or the sums, were checked for this row.
                        acc[0] = unsafe { load_sums::<VECTORS, LINES>(from, from_pitch) };
                    }
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
                    // SAFETY: the output was checked for this row.
                    unsafe { store_sums::<VECTORS, LINES>(acc[0], to, grid.output_pitch) };
                }
                // Past the last row these point anywhere, and nothing reads them.
                (from, to) = (from.wrapping_add(from_stride), to.wrapping_add(stride));
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
            let TileProduct { strip, finish, stride, .. } = *product;
            let input = (product.input, 0);
            let mut to = output.as_mut_ptr();
            let starts = starts(product, to);
            let (mut from, [from_stride, _]) = starts.unwrap_or((to, [0, 0]));
            for row in 0..strip.nrows() {
                let mut sums = [$zero(); VECTORS];
                if starts.is_some() {
                    // SAFETY: the output, or the sums, were checked for this row.
                    sums = unsafe { load_sums::<VECTORS, 1>(from, 0) };
                }
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
                // SAFETY: the output was checked for this row.
                unsafe { store_sums::<VECTORS, 1>(sums, to, 0) };
                // Past the last row these point anywhere, and nothing reads them.
                (from, to) = (from.wrapping_add(from_stride), to.wrapping_add(stride));
            }
        }
    };
}
pub(super) use define_add_shifted;
