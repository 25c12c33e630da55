//! Rules from one naming to another, and what becomes of a file's tensors under them.

use std::collections::BTreeMap;

use super::{Piece, Recipe, Tensors, note};
use crate::error::{ProblemKind, TensorProblem};
use crate::header::Header;

/// What a module's tensors end in, theirs and ours.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ends {
    /// `.weight` and `.bias` in both.
    Layer,
    /// Our `.scale` is their `.weight`.
    Scale,
    /// The names are whole.
    None,
}

impl Ends {
    fn pairs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Layer => &[(".weight", ".weight"), (".bias", ".bias")],
            Self::Scale => &[(".weight", ".scale")],
            Self::None => &[("", "")],
        }
    }
}

/// What is done to the values on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Their tensors, one below the other, are ours; or theirs, cut into equal parts, is ours.
    Rows,
    /// Theirs with its two halves of rows exchanged.
    SwapHalves,
    /// A matrix becomes a convolution of side 1.
    Convolution,
    /// As `Rows`; the first number of a name counts from the other end.
    Mirrored,
}

/// A module of ours that is made of theirs. `{}` stands for a number, the same ones on both sides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub theirs: &'static [&'static str],
    pub ours: &'static [&'static str],
    pub ends: Ends,
    pub how: How,
}

/// The numbers of a name that has the form of `template`.
pub(crate) fn matched(template: &str, name: &str) -> Option<Vec<i64>> {
    let mut numbers = Vec::new();
    let mut rest = name;
    let mut parts = template.split("{}");
    rest = rest.strip_prefix(parts.next()?)?;
    for part in parts {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        // A number with a leading zero is another name.
        if digits == 0 || digits > 9 || (digits > 1 && number.starts_with('0')) {
            return None;
        }
        numbers.push(number.parse().ok()?);
        rest = after.strip_prefix(part)?;
    }
    rest.is_empty().then_some(numbers)
}

/// `template` with the numbers in their places.
pub(crate) fn filled(template: &str, numbers: &[i64]) -> String {
    let mut numbers = numbers.iter();
    let mut name = String::new();
    for (index, part) in template.split("{}").enumerate() {
        if index > 0 {
            name.push_str(&numbers.next().map(i64::to_string).unwrap_or_default());
        }
        name.push_str(part);
    }
    name
}

/// Where a tensor of theirs belongs.
struct Place {
    rule: &'static Rule,
    numbers: Vec<i64>,
    /// Which of the rule's templates.
    slot: usize,
    ends: (&'static str, &'static str),
}

fn place_of(name: &str, rules: &'static [Rule]) -> Option<Place> {
    for rule in rules {
        for ends in rule.ends.pairs() {
            let Some(module) = name.strip_suffix(ends.0) else { continue };
            for (slot, template) in rule.theirs.iter().enumerate() {
                if let Some(numbers) = matched(template, module) {
                    return Some(Place { rule, numbers, slot, ends: *ends });
                }
            }
        }
    }
    None
}

/// A tensor of ours under way: its pieces by slot.
struct Gathered {
    place: Place,
    pieces: BTreeMap<usize, Piece>,
}

/// The recipes for a file's tensors; those that no rule knows keep their names.
pub(super) fn apply(
    header: &Header,
    tensors: Tensors,
    rules: &'static [Rule],
    problems: &mut Vec<TensorProblem>,
) -> BTreeMap<String, Recipe> {
    let mut recipes = BTreeMap::new();
    let mut gathered: BTreeMap<String, Gathered> = BTreeMap::new();
    let mut prefixes: BTreeMap<String, String> = BTreeMap::new();
    let last = last_numbers(&tensors, rules);
    for (name, piece) in tensors {
        let Some(place) = place_of(&name, rules) else {
            insert(header, &mut recipes, problems, name, vec![piece], How::Rows);
            continue;
        };
        let mut numbers = place.numbers.clone();
        if place.rule.how == How::Mirrored
            && let (Some(number), Some(last)) = (numbers.first_mut(), last.get(place.rule.theirs[0]))
        {
            *number = last - *number;
        }
        let Place { slot, ends, .. } = place;
        if let [ours] = place.rule.ours {
            let ours = format!("{}{}", filled(ours, &numbers), ends.1);
            let prefix = piece.tensor.strip_suffix(name.as_str()).unwrap_or_default().to_owned();
            prefixes.insert(ours.clone(), prefix);
            let own = gathered.entry(ours).or_insert(Gathered { place, pieces: BTreeMap::new() });
            if let Some(other) = own.pieces.insert(slot, piece) {
                note(problems, other.tensor, ProblemKind::Unexpected);
            }
            continue;
        }
        let count = place.rule.ours.len() as i64;
        for (index, ours) in (0..).zip(place.rule.ours) {
            let part = Piece { part: (index, count), ..piece.clone() };
            let ours = format!("{}{}", filled(ours, &numbers), ends.1);
            insert(header, &mut recipes, problems, ours, vec![part], How::Rows);
        }
    }
    for (ours, Gathered { place, mut pieces }) in gathered {
        let prefix = prefixes.remove(&ours).unwrap_or_default();
        let templates = place.rule.theirs;
        // Alternatives of one tensor, or the pieces of one.
        let missing = (0..templates.len()).filter(|slot| !pieces.contains_key(slot));
        let names = missing
            .map(|slot| format!("{prefix}{}{}", filled(templates[slot], &place.numbers), place.ends.0));
        let missing: Vec<String> = names.collect();
        missing.into_iter().for_each(|name| note(problems, name, ProblemKind::Missing));
        let how = place.rule.how;
        if how == How::SwapHalves
            && let Some(piece) = pieces.remove(&0)
        {
            let half = |index| Piece { part: (index, 2), ..piece.clone() };
            insert(header, &mut recipes, problems, ours, vec![half(1), half(0)], how);
            continue;
        }
        insert(header, &mut recipes, problems, ours, pieces.into_values().collect(), how);
    }
    recipes
}

/// The largest first number under each mirrored rule's first template's stack.
fn last_numbers(tensors: &Tensors, rules: &'static [Rule]) -> BTreeMap<&'static str, i64> {
    let mut last = BTreeMap::new();
    for rule in rules.iter().filter(|rule| rule.how == How::Mirrored) {
        let Some((stack, _)) = rule.theirs[0].split_once("{}") else { continue };
        let number = |name: &String| name.strip_prefix(stack)?.split('.').next()?.parse::<i64>().ok();
        // Names come from outside: a number that no network has would count down into nothing.
        let largest = tensors.keys().filter_map(number).filter(|number| (0..4096).contains(number)).max();
        last.insert(rule.theirs[0], largest.unwrap_or(0));
    }
    last
}

/// Adds a recipe, unless its pieces do not fit each other.
fn insert(
    header: &Header,
    recipes: &mut BTreeMap<String, Recipe>,
    problems: &mut Vec<TensorProblem>,
    name: String,
    pieces: Vec<Piece>,
    how: How,
) {
    let mut shape: Option<Vec<i64>> = None;
    let Some(first) = pieces.first().and_then(|piece| header.get(&piece.tensor)) else { return };
    for piece in &pieces {
        let Some(tensor) = header.get(&piece.tensor) else { continue };
        let mut own = tensor.shape.clone();
        let (_, parts) = piece.part;
        if let Some(rows) = own.first_mut().filter(|_| parts > 1) {
            if *rows % parts != 0 {
                let expected = vec![rows.saturating_add(parts - *rows % parts)];
                note(problems, &piece.tensor, ProblemKind::Shape { found: tensor.shape.clone(), expected });
                return;
            }
            *rows /= parts;
        }
        match &mut shape {
            None => shape = Some(own),
            Some(shape) if !own.is_empty() && own.get(1..) == shape.get(1..) => {
                shape[0] = shape[0].saturating_add(own[0]);
            }
            Some(shape) => {
                note(problems, &piece.tensor, ProblemKind::Shape { found: own, expected: shape.clone() });
                return;
            }
        }
    }
    // Two tensors of the file that are one of ours: which of them is meant cannot be told.
    if recipes.contains_key(&name) {
        return pieces.into_iter().for_each(|piece| note(problems, piece.tensor, ProblemKind::Unexpected));
    }
    let mut shape = shape.unwrap_or_default();
    if how == How::Convolution && shape.len() == 2 {
        shape.extend([1, 1]);
    }
    recipes.insert(name, Recipe { pieces, shape, dtype: first.dtype.clone(), bits: first.bits });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_numbers_and_nothing_else() {
        assert_eq!(matched("a.{}.b.{}.c", "a.3.b.12.c"), Some(vec![3, 12]));
        assert_eq!(matched("a.b", "a.b"), Some(vec![]));
        for name in
            ["a..b.1.c", "a.x.b.1.c", "a.03.b.1.c", "a.3.b.1.cc", "a.99999999999.b.1.c", "x.a.3.b.1.c"]
        {
            assert_eq!(matched("a.{}.b.{}.c", name), None, "{name}");
        }
        assert_eq!(filled("a.{}.b.{}.c", &[3, 12]), "a.3.b.12.c");
    }
}
