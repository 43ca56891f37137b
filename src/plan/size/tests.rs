use arrow_quant_kernels::{Bits, GroupSize, PairSums};

use super::*;

fn cost(choice: usize, bytes: u64, squared_error: f64) -> Cost {
    let widths = [Bits::Two, Bits::Four, Bits::Eight];
    let choice = widths.get(choice).map(|&bits| Choice::Grouped { bits, group_size: GroupSize::ALL[0] });
    Cost { choice, bytes, sums: PairSums::default(), squared_error }
}

/// Tensors of several sizes whose errors fall by about 16 with every step, from different heights.
fn tensors() -> Vec<(usize, Vec<Cost>)> {
    let costs = |i: u64| {
        let (size, error) = (100 + 37 * (i * i % 11), (1 + i * 7 % 13) as f64);
        vec![
            cost(0, 2 * size, 256.0 * error),
            cost(1, 4 * size, 17.0 * error),
            cost(2, 8 * size, error),
            cost(3, 16 * size, 0.0),
        ]
    };
    (0..8).map(|i| (i as usize, costs(i))).collect()
}

fn error(allocation: &Allocation) -> f64 {
    allocation.chosen().map(|(_, cost)| cost.squared_error).sum()
}

/// The least error within a budget, of all combinations.
fn exhaustive(budget: u64) -> f64 {
    let tensors = tensors();
    let combination = |mut number: usize| {
        let (mut bytes, mut error) = (0, 0.0);
        for (_, costs) in &tensors {
            let cost = &costs[number % 4];
            (bytes, error, number) = (bytes + cost.bytes, error + cost.squared_error, number / 4);
        }
        (bytes <= budget).then_some(error)
    };
    (0..4usize.pow(8)).filter_map(combination).min_by(f64::total_cmp).unwrap()
}

#[test]
fn a_budget_is_kept_and_spent_almost_as_well_as_can_be() {
    let least: u64 = Allocation::new(tensors(), false).least_bytes();
    for percent in [100, 110, 150, 200, 230, 300, 370, 400, 500, 650, 800, 1000] {
        let budget = least * percent / 100;
        let mut allocation = Allocation::new(tensors(), false);
        allocation.choose(budget).unwrap();
        assert!(allocation.bytes() <= budget);
        let (found, best) = (error(&allocation), exhaustive(budget));
        assert!(found <= 1.1 * best, "{percent} %: {found}, best {best}");
    }
    assert!(Allocation::new(tensors(), false).choose(least - 1).is_err());
}

/// Budgets that are just enough for a uniform choice, or a byte short of it, from which steps by gain end far away.
#[test]
fn never_worse_than_the_best_uniform_choice() {
    for choice in 0..3 {
        let uniform: Vec<Cost> = tensors().iter().map(|(_, costs)| costs[choice]).collect();
        let bytes: u64 = uniform.iter().map(|cost| cost.bytes).sum();
        let total: f64 = uniform.iter().map(|cost| cost.squared_error).sum();
        let mut allocation = Allocation::new(tensors(), false);
        allocation.choose(bytes).unwrap();
        assert!(allocation.bytes() <= bytes && error(&allocation) <= total);
        if choice > 0 {
            allocation.choose(bytes - 1).unwrap();
            assert!(error(&allocation) <= 1.1 * exhaustive(bytes - 1), "{choice}");
        }
    }
}

#[test]
fn a_small_change_of_budget_changes_little() {
    let mut allocation = Allocation::new(tensors(), false);
    let least = allocation.least_bytes();
    allocation.choose(least * 3).unwrap();
    let before: Vec<_> = allocation.chosen().map(|(_, cost)| cost.choice).collect();
    let budget = allocation.bytes() - 1;
    allocation.adjust(budget).unwrap();
    assert!(allocation.bytes() <= budget);
    let changed = allocation.chosen().zip(&before).filter(|((_, cost), before)| cost.choice != **before).count();
    assert!((1..=3).contains(&changed), "{changed}");
    assert!(error(&allocation) <= 1.5 * exhaustive(budget));
}

#[test]
fn a_choice_that_is_forbidden_is_not_made_again() {
    let mut allocation = Allocation::new(tensors(), false);
    let budget = allocation.least_bytes() * 2;
    allocation.choose(budget).unwrap();
    let choice = |index: usize| Choice::Grouped {
        bits: [Bits::Two, Bits::Four, Bits::Eight][index],
        group_size: GroupSize::ALL[0],
    };
    for index in 0..3 {
        assert!(allocation.forbid(3, choice(index)));
        allocation.adjust(4 * budget).unwrap();
        let found = allocation.chosen().find(|(tensor, _)| *tensor == 3).unwrap().1.choice;
        assert!(found.is_none_or(|found| found.bits() > choice(index).bits()), "{found:?}");
    }
    allocation.adjust(u64::MAX).unwrap();
    assert_eq!(error(&allocation), 0.0, "all there is room for");
}

#[test]
fn one_choice_for_all() {
    let mut allocation = Allocation::new(tensors(), true);
    let least = allocation.least_bytes();
    allocation.choose(least * 3).unwrap();
    let bits: Vec<_> = allocation.chosen().map(|(_, cost)| cost.choice.map(|c| c.bits())).collect();
    assert!(bits.iter().all(|bits| *bits == Some(Bits::Four)), "{bits:?}");
    assert!(allocation.choose(least - 1).is_err());
}
