//! Which of the boxes that a detector found is cut out.

use crescendo_core::rejection::Rejection;
use crescendo_core::spec::CropSpec;
use crescendo_model::owlv2::{BoundingBox, Detection};

/// A box nearer to the edge than this share of the target's shorter side is taken to be cut off.
const EDGE_SHARE: f32 = 0.01;

/// What a second subject's box must be like. The paper gives no numbers; defaults are those of the spec.
#[derive(Clone, Copy, Debug)]
pub struct BoxLimits {
    /// Of the target's area.
    pub least_share: f32,
    pub most_share: f32,
    /// Share of the smaller of two boxes that may lie in the other.
    pub most_overlap: f32,
    /// Whether a box at the edge is taken to be cut off. It is not where the target was composed: what was placed is whole.
    pub edge_cuts: bool,
}

impl BoxLimits {
    pub fn of(spec: &CropSpec) -> BoxLimits {
        BoxLimits {
            least_share: spec.box_share.0 as f32,
            most_share: spec.box_share.1 as f32,
            most_overlap: spec.box_overlap as f32,
            edge_cuts: spec.subjects.is_none(),
        }
    }
}

/// The best box that is good, in a target of `size` (width, height) pixels of which `taken` belongs to other subjects.
/// Where none is good, the best one says why.
pub fn choose_box(
    found: &[Detection],
    taken: &[BoundingBox],
    size: (u32, u32),
    limits: &BoxLimits,
) -> Result<Detection, Rejection> {
    let mut best_first: Vec<&Detection> = found.iter().filter(|one| one.score.is_finite()).collect();
    best_first.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut reason = Rejection::NoSecondSubject;
    for (n, one) in best_first.iter().enumerate() {
        match judge(&one.bounds, taken, size, limits) {
            Ok(()) => return Ok(**one),
            Err(why) if n == 0 => reason = why,
            Err(_) => {}
        }
    }
    Err(reason)
}

fn judge(
    bounds: &BoundingBox,
    taken: &[BoundingBox],
    (width, height): (u32, u32),
    limits: &BoxLimits,
) -> Result<(), Rejection> {
    let (width, height) = (width as f32, height as f32);
    // A box with an edge that is not a number has no area, and is too small.
    let share = area(bounds) / (width * height).max(1.0);
    if share.is_nan() || share <= 0.0 || share < limits.least_share {
        return Err(Rejection::BoxSmall);
    }
    if share > limits.most_share {
        return Err(Rejection::BoxLarge);
    }
    if taken.iter().any(|other| share_within(bounds, other) > limits.most_overlap) {
        return Err(Rejection::BoxOverlap);
    }
    let edge = EDGE_SHARE * width.min(height);
    let inside = bounds.left >= edge
        && bounds.top >= edge
        && bounds.right <= width - edge
        && bounds.bottom <= height - edge;
    if inside || !limits.edge_cuts { Ok(()) } else { Err(Rejection::BoxEdge) }
}

fn area(bounds: &BoundingBox) -> f32 {
    (bounds.right - bounds.left).max(0.0) * (bounds.bottom - bounds.top).max(0.0)
}

/// Share of the smaller box that lies in the other.
fn share_within(a: &BoundingBox, b: &BoundingBox) -> f32 {
    let common = BoundingBox {
        left: a.left.max(b.left),
        top: a.top.max(b.top),
        right: a.right.min(b.right),
        bottom: a.bottom.min(b.bottom),
    };
    let smaller = area(a).min(area(b));
    if smaller > 0.0 { area(&common) / smaller } else { 0.0 }
}

/// The square around a box that a reference is cut from, as (x, y, side): a tenth wider than the box, so that the
/// subject's outline is in it, moved where it would leave the target.
pub fn square_around(bounds: &BoundingBox, (width, height): (u32, u32)) -> (u32, u32, u32) {
    const MARGIN: f32 = 1.1;
    let most = width.min(height);
    let side = (MARGIN * (bounds.right - bounds.left).max(bounds.bottom - bounds.top)).round();
    let side = (side as u32).clamp(1, most.max(1));
    let start = |low: f32, high: f32, length: u32| {
        let wanted = ((low + high) / 2.0 - side as f32 / 2.0).round();
        (wanted.max(0.0) as u32).min(length.saturating_sub(side))
    };
    (start(bounds.left, bounds.right, width), start(bounds.top, bounds.bottom, height), side)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Rejection::{BoxEdge, BoxLarge, BoxOverlap, BoxSmall, NoSecondSubject};

    const LIMITS: BoxLimits =
        BoxLimits { least_share: 0.02, most_share: 0.5, most_overlap: 0.3, edge_cuts: true };

    fn bounds(left: f32, top: f32, right: f32, bottom: f32) -> BoundingBox {
        BoundingBox { left, top, right, bottom }
    }

    fn found(score: f32, bounds: BoundingBox) -> Detection {
        Detection { score, query: 0, bounds }
    }

    fn choose(found: &[Detection]) -> Result<f32, Rejection> {
        let first = bounds(10.0, 10.0, 50.0, 60.0);
        choose_box(found, &[first], (100, 100), &LIMITS).map(|one| one.score)
    }

    #[test]
    fn each_fault_of_a_box_has_its_reason() {
        let good = bounds(60.0, 20.0, 90.0, 60.0);
        assert_eq!(choose(&[found(0.5, good)]), Ok(0.5));
        for (reason, bad) in [
            (BoxSmall, bounds(70.0, 70.0, 80.0, 80.0)),
            (BoxSmall, bounds(90.0, 60.0, 60.0, 20.0)),
            (BoxSmall, bounds(f32::NAN, 20.0, 90.0, 60.0)),
            (BoxLarge, bounds(5.0, 5.0, 95.0, 95.0)),
            (BoxOverlap, bounds(35.0, 15.0, 75.0, 55.0)),
            (BoxEdge, bounds(60.0, 20.0, 99.5, 60.0)),
            (BoxEdge, bounds(60.0, 0.0, 90.0, 40.0)),
        ] {
            assert_eq!(choose(&[found(0.5, bad)]), Err(reason), "{bad:?}");
            // A worse one that is good is better than none.
            assert_eq!(choose(&[found(0.5, bad), found(0.3, good)]), Ok(0.3));
        }
        assert_eq!(choose(&[]), Err(NoSecondSubject));
        assert_eq!(choose(&[found(f32::NAN, good)]), Err(NoSecondSubject));
    }

    #[test]
    fn what_is_known_to_be_whole_may_reach_the_edge() {
        let whole = BoxLimits { edge_cuts: false, ..LIMITS };
        let at_edge = found(0.5, bounds(60.0, 0.0, 100.0, 40.0));
        assert_eq!(choose_box(&[at_edge], &[], (100, 100), &whole), Ok(at_edge));
        assert_eq!(choose_box(&[at_edge], &[], (100, 100), &LIMITS), Err(BoxEdge));
    }

    #[test]
    fn the_best_good_box_is_chosen_and_the_best_bad_one_blamed() {
        let (good, other) = (bounds(60.0, 20.0, 90.0, 60.0), bounds(60.0, 65.0, 90.0, 95.0));
        assert_eq!(choose(&[found(0.4, good), found(0.6, other)]), Ok(0.6));
        let (small, large) = (bounds(70.0, 70.0, 80.0, 80.0), bounds(5.0, 5.0, 95.0, 95.0));
        assert_eq!(choose(&[found(0.4, small), found(0.6, large)]), Err(BoxLarge));
    }

    #[test]
    fn the_square_stays_inside_the_target() {
        assert_eq!(square_around(&bounds(10.0, 20.0, 30.0, 30.0), (100, 80)), (9, 14, 22));
        assert_eq!(square_around(&bounds(0.0, 0.0, 90.0, 10.0), (100, 80)), (5, 0, 80));
        assert_eq!(square_around(&bounds(90.0, 70.0, 99.0, 79.0), (100, 80)), (90, 70, 10));
        assert_eq!(square_around(&bounds(f32::NAN, 0.0, f32::NAN, 0.0), (100, 80)).2, 1);
    }
}
