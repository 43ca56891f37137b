//! The rotation of ComfyUI's `convrot`: groups of columns times a symmetric matrix that is its own inverse, the Kronecker
//! product of matrices of four rows.

/// Rows of the smallest matrix.
const BASE: usize = 4;

/// The largest matrix.
const MOST: u64 = 1 << 16;

/// Whether there is a matrix of so many rows: a power of four.
pub(super) fn is_size(size: u64) -> bool {
    (BASE as u64..=MOST).contains(&size) && size.is_power_of_two() && size.trailing_zeros().is_multiple_of(2)
}

/// Rotates each group of `size` weights of a row.
pub(super) fn rotate(row: &mut [f32], size: usize) {
    for group in row.chunks_exact_mut(size) {
        let mut distance = 1;
        while distance < size {
            step(group, distance);
            distance *= BASE;
        }
    }
}

/// One factor of the product: weights at a distance are mixed by fours.
fn step(group: &mut [f32], distance: usize) {
    for block in group.chunks_exact_mut(BASE * distance) {
        for at in 0..distance {
            let [a, b, c, d] = std::array::from_fn(|k| block[at + k * distance]);
            let mixed = [a + b + c - d, a + b - c + d, a - b + c + d, b + c + d - a];
            for (k, value) in mixed.into_iter().enumerate() {
                block[at + k * distance] = 0.5 * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rotation_is_its_own_inverse() {
        let weights: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) / 8.0).collect();
        for size in [4, 16, 64, 256] {
            let mut turned = weights.clone();
            rotate(&mut turned, size);
            assert!(turned.iter().zip(&weights).any(|(a, b)| (a - b).abs() > 1.0));
            rotate(&mut turned, size);
            assert!(turned.iter().zip(&weights).all(|(a, b)| (a - b).abs() < 1e-4));
        }
    }

    #[test]
    fn sizes_are_powers_of_four() {
        let sizes: Vec<u64> = (0..300).filter(|size| is_size(*size)).collect();
        assert_eq!(sizes, [4, 16, 64, 256]);
    }
}
