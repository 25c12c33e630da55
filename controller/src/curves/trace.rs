//! The numbers of steps in bounded memory: each bucket holds the mean, the least and the most of the steps that it stands for.

use crescendo_proto::v1;

/// Curves of one stage: loss, gradient norm, learning rate, steps a second, share of waiting for data.
pub const SERIES: usize = 5;

/// Numbers of one step; not a number where nothing is known, or was finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub step: u64,
    pub values: [f64; SERIES],
}

/// What is known of one curve over a bucket's steps.
#[derive(Clone, Copy, Debug)]
struct Span {
    sum: f64,
    count: u32,
    least: f32,
    most: f32,
}

impl Span {
    const EMPTY: Self = Self { sum: 0.0, count: 0, least: f32::INFINITY, most: f32::NEG_INFINITY };

    #[allow(clippy::cast_possible_truncation)] // they are drawn
    fn of(value: f64) -> Self {
        match value.is_finite() {
            true => Self { sum: value, count: 1, least: value as f32, most: value as f32 },
            false => Self::EMPTY,
        }
    }

    fn add(&mut self, other: &Self) {
        self.sum += other.sum;
        self.count += other.count;
        self.least = self.least.min(other.least);
        self.most = self.most.max(other.most);
    }

    #[allow(clippy::cast_possible_truncation)]
    fn mean(&self) -> f32 {
        match self.count {
            0 => f32::NAN,
            count => (self.sum / f64::from(count)) as f32,
        }
    }

    fn bounds(&self) -> (f32, f32) {
        match self.count {
            0 => (f32::NAN, f32::NAN),
            _ => (self.least, self.most),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    pub first_step: u64,
    pub last_step: u64,
    /// Points that it was made of.
    points: u32,
    spans: [Span; SERIES],
}

impl Bucket {
    fn of(point: &Point) -> Self {
        let spans = point.values.map(Span::of);
        Self { first_step: point.step, last_step: point.step, points: 1, spans }
    }

    /// Takes over one that follows.
    fn add(&mut self, next: &Self) {
        self.last_step = next.last_step;
        self.points += next.points;
        for (span, next) in self.spans.iter_mut().zip(&next.spans) {
            span.add(next);
        }
    }
}

/// Steps in ascending order, in at most so many buckets.
#[derive(Clone, Debug)]
pub struct Trace {
    buckets: Vec<Bucket>,
    most_buckets: usize,
    /// Points that a bucket takes before the next is begun.
    points_each: u32,
    /// Grows whenever buckets change that were full.
    epoch: u64,
}

impl Trace {
    pub fn new(most_buckets: usize) -> Self {
        Self { buckets: Vec::new(), most_buckets: most_buckets.max(2), points_each: 1, epoch: 0 }
    }

    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn last_step(&self) -> u64 {
        self.buckets.last().map_or(0, |bucket| bucket.last_step)
    }

    /// Every step from the first on is in it.
    pub fn is_gapless(&self) -> bool {
        self.buckets.iter().map(|bucket| u64::from(bucket.points)).sum::<u64>() == self.last_step()
    }

    /// Adds a step after all others.
    pub fn push(&mut self, point: &Point) {
        let next = Bucket::of(point);
        match self.buckets.last_mut() {
            Some(last) if last.points < self.points_each => last.add(&next),
            _ => self.buckets.push(next),
        }
        if self.buckets.len() > self.most_buckets {
            self.buckets = merged(&self.buckets, 2);
            self.points_each = self.points_each.saturating_mul(2);
            self.epoch += 1;
        }
    }

    /// Forgets `step` and all after it: they are trained again.
    pub fn forget_from(&mut self, step: u64) {
        let kept = self.buckets.partition_point(|bucket| bucket.last_step < step);
        if kept < self.buckets.len() {
            self.buckets.truncate(kept);
            self.epoch += 1;
        }
    }
}

/// Buckets of `each` neighbours.
fn merged(buckets: &[Bucket], each: usize) -> Vec<Bucket> {
    let merge = |group: &[Bucket]| {
        let mut whole = group[0];
        group[1..].iter().for_each(|next| whole.add(next));
        whole
    };
    // Chunks are never empty.
    buckets.chunks(each.max(1)).map(merge).collect()
}

/// What was kept of a stage, with what was reported after that. What no history keeps is taken from the reports.
pub fn joined(kept: Option<&Trace>, reported: &Trace) -> Vec<Bucket> {
    let Some(kept) = kept else { return reported.buckets.clone() };
    let mut buckets = kept.buckets.clone();
    let (mut at, end) = (0, kept.last_step());
    for bucket in &mut buckets {
        while let Some(heard) = reported.buckets.get(at).filter(|heard| heard.last_step <= bucket.last_step) {
            let spans = bucket.spans.iter_mut().zip(&heard.spans).zip(ONLY_REPORTED);
            spans.filter(|(_, reported)| *reported).for_each(|((span, heard), _)| span.add(heard));
            at += 1;
        }
    }
    buckets.extend(reported.buckets.iter().filter(|heard| heard.last_step > end));
    buckets
}

/// The share of waiting for data stands in no history.
const ONLY_REPORTED: [bool; SERIES] = [false, false, false, false, true];

/// How many neighbours share a point, so that there are at most so many: a power of two, which is stable while steps are added.
pub fn each_of(buckets: usize, max_points: usize) -> usize {
    let mut each = 1;
    while buckets.div_ceil(each) > max_points.max(2) {
        each *= 2;
    }
    each
}

/// The points after a step, `each` buckets one; with the last step of the last but one, which does not change any more.
pub fn points(buckets: &[Bucket], each: usize, after_step: u64, curve: &mut v1::Curve) -> u64 {
    let all = merged(buckets, each);
    let settled = all.len().checked_sub(2).and_then(|at| all.get(at)).map_or(0, |bucket| bucket.last_step);
    let shown = &all[all.partition_point(|bucket| bucket.last_step <= after_step)..];
    curve.steps = shown.iter().map(|bucket| bucket.last_step).collect();
    let series = |at: usize| {
        let spans = || shown.iter().filter_map(move |bucket| bucket.spans.get(at));
        let varies = spans().any(|span| span.count > 1 && span.least < span.most);
        let (least, most) = match varies {
            true => spans().map(Span::bounds).unzip(),
            false => (Vec::new(), Vec::new()),
        };
        Some(v1::Series { mean: spans().map(Span::mean).collect(), least, most })
    };
    curve.loss = series(0);
    curve.grad_norm = series(1);
    curve.learning_rate = series(2);
    curve.steps_per_sec = series(3);
    curve.data_wait = series(4);
    curve.after_step = after_step;
    settled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, loss: f64) -> Point {
        Point { step, values: [loss, 1.0, 1e-4, 2.0, f64::NAN] }
    }

    fn trace(most_buckets: usize, steps: u64) -> Trace {
        let mut trace = Trace::new(most_buckets);
        for step in 1..=steps {
            // One spike among many.
            let loss = if step == 500 {
                99.0
            } else if step == 501 {
                -7.0
            } else {
                1.0
            };
            trace.push(&point(step, loss));
        }
        trace
    }

    fn shown(trace: &Trace, max_points: usize, after_step: u64) -> (v1::Curve, u64) {
        let mut curve = v1::Curve::default();
        let each = each_of(trace.buckets().len(), max_points);
        let settled = points(trace.buckets(), each, after_step, &mut curve);
        (curve, settled)
    }

    #[test]
    fn memory_is_bounded_and_no_spike_is_lost() {
        let trace = trace(64, 10_000);
        assert!(trace.buckets().len() <= 64, "{}", trace.buckets().len());
        assert_eq!(trace.last_step(), 10_000);
        assert!(trace.is_gapless());
        let (curve, _) = shown(&trace, 10, 0);
        assert!(curve.steps.len() <= 10 && curve.steps.last() == Some(&10_000), "{:?}", curve.steps);
        let loss = curve.loss.unwrap();
        assert_eq!(loss.most.iter().copied().fold(0.0, f32::max), 99.0);
        assert_eq!(loss.least.iter().copied().fold(9.0, f32::min), -7.0);
        // Where nothing varies, there are no bounds to send; where nothing is known, no number.
        assert!(curve.grad_norm.unwrap().least.is_empty());
        assert!(curve.data_wait.unwrap().mean.iter().all(|value| value.is_nan()));
    }

    #[test]
    fn what_is_added_follows_what_was_sent() {
        let mut trace = trace(1000, 10);
        let (first, settled) = shown(&trace, 1000, 0);
        assert_eq!((first.steps.len(), settled), (10, 9));
        trace.push(&point(11, 1.0));
        trace.push(&point(12, 1.0));
        let (next, settled) = shown(&trace, 1000, settled);
        assert_eq!((next.after_step, next.steps.as_slice(), settled), (9, [10, 11, 12].as_slice(), 11));
    }

    #[test]
    fn steps_that_are_trained_again_are_forgotten() {
        let mut trace = trace(1000, 10);
        let before = trace.epoch();
        trace.forget_from(11);
        assert_eq!((trace.last_step(), trace.epoch()), (10, before));
        trace.forget_from(6);
        assert_eq!((trace.last_step(), trace.epoch()), (5, before + 1));
    }

    #[test]
    fn a_history_is_followed_by_reports_and_takes_from_them_what_it_has_not() {
        let kept = trace(1000, 6);
        let mut reported = Trace::new(1000);
        for step in [2, 4, 6, 8] {
            let mut heard = point(step, 55.0);
            heard.values[4] = 0.5;
            reported.push(&heard);
        }
        let buckets = joined(Some(&kept), &reported);
        let mut curve = v1::Curve::default();
        points(&buckets, 1, 0, &mut curve);
        assert_eq!(curve.steps, [1, 2, 3, 4, 5, 6, 8]);
        assert_eq!(curve.loss.unwrap().mean, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 55.0]);
        let waited: Vec<bool> = curve.data_wait.unwrap().mean.iter().map(|value| *value == 0.5).collect();
        assert_eq!(waited, [false, true, false, true, false, true, true]);
    }
}
