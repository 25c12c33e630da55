//! The pictures of a report by row and column, for the page and for the grid.

use image::RgbImage;

use super::cases::{Block, Shown};
use super::draw::Contender;
use super::grid::{Cell, draw_grid, stack};
use super::words::counted;

/// Height and width of a cell of the grid, pixels; small pictures are enlarged, large ones shrunk.
const GRID_CELL: u32 = 160;

/// What one contender drew of each block; none where it could not.
pub type Drawn = Option<Vec<Vec<RgbImage>>>;

/// The rows of one block under the same headings.
pub struct PictureBlock<'a> {
    pub title: String,
    /// Why what is drawn here has no score, if some of it has none.
    pub unscored: Option<String>,
    /// Of the pictures of a row: references, target, contenders. All rows have all of them.
    pub headings: Vec<String>,
    pub rows: Vec<PictureRow<'a>>,
}

pub struct PictureRow<'a> {
    pub prompt: &'a str,
    pub pictures: Vec<&'a RgbImage>,
}

/// All blocks that have a row. `drawn` has an entry for each contender.
pub fn arranged<'a>(
    blocks: &'a [Block],
    contenders: &[Contender],
    drawn: &'a [Drawn],
) -> Vec<PictureBlock<'a>> {
    let arrange = |(number, block): (usize, &'a Block)| {
        let mut headings: Vec<String> = match block.references {
            _ if block.set.cases.iter().all(|case| case.references.is_empty()) => Vec::new(),
            1 => vec!["reference".to_owned()],
            many => (1..=many).map(|n| format!("reference {n}")).collect(),
        };
        headings.push("target".to_owned());
        let drew: Vec<(&Contender, &'a [RgbImage])> = contenders
            .iter()
            .zip(drawn)
            .filter_map(|(contender, drawn)| Some((contender, drawn.as_ref()?.get(number)?.as_slice())))
            .collect();
        headings.extend(drew.iter().map(|(contender, _)| contender.label.clone()));
        let rows = block.set.cases.iter().take(block.rows()).enumerate().map(|(n, case)| {
            let shown = case.references.iter().chain([&case.truth]);
            let drawn = drew.iter().filter_map(|(_, pictures)| pictures.get(n));
            PictureRow { prompt: &case.prompt, pictures: shown.chain(drawn).collect() }
        });
        let unscored = unscored(block, drew.iter().map(|(contender, _)| *contender));
        PictureBlock { title: title(block), unscored, headings, rows: rows.collect() }
    };
    blocks.iter().enumerate().map(arrange).filter(|block: &PictureBlock| !block.rows.is_empty()).collect()
}

fn title(block: &Block) -> String {
    let subjects = match block.references {
        0 | 1 => "Subjects".to_owned(),
        many => format!("Cases of {many} subjects"),
    };
    match block.shown {
        Shown::HeldOut => format!("{subjects} that training never saw"),
        Shown::Training => format!("{subjects} that training has seen, in other scenes"),
        Shown::Pairs => "Pairs that training has seen".to_owned(),
    }
}

/// Why pictures of a block by `contenders` have no score; none if all have one.
fn unscored<'a>(block: &Block, contenders: impl Iterator<Item = &'a Contender>) -> Option<String> {
    match block.shown {
        Shown::Pairs => Some("Not scored: which subjects these pairs show is not known.".to_owned()),
        _ if !block.scored => {
            Some("Not scored: the library has no other subjects to tell these from.".to_owned())
        }
        _ => {
            let other = contenders.filter(|contender| !contender.is_scored_on(block)).map(|contender| {
                let references = counted(contender.references.unwrap_or_default(), "reference");
                format!("{}, which was trained with {references}", contender.label)
            });
            let all: Vec<String> = other.collect();
            (!all.is_empty()).then(|| format!("Not scored here: {}.", all.join("; ")))
        }
    }
}

/// All blocks as one picture; none without a row.
pub fn grid(blocks: &[PictureBlock]) -> Option<RgbImage> {
    let each: Vec<(&str, RgbImage)> = blocks
        .iter()
        .map(|block| {
            let headings: Vec<&str> =
                std::iter::once("prompt").chain(block.headings.iter().map(String::as_str)).collect();
            let rows: Vec<Vec<Cell>> = block
                .rows
                .iter()
                .map(|row| {
                    std::iter::once(Cell::Text(row.prompt))
                        .chain(row.pictures.iter().copied().map(Cell::Picture))
                        .collect()
                })
                .collect();
            (block.title.as_str(), draw_grid(&headings, &rows, GRID_CELL))
        })
        .collect();
    (!each.is_empty()).then(|| stack(&each))
}
