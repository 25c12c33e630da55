//! Panels with what is true of them: what the networks that measure drawings are trained on.

use super::{ComposeError, Composed, Composer, Placement, Scene, distinct};
use crate::rng::SeededRng;
use image::RgbImage;

/// A panel and what it shows.
#[derive(Clone, Debug)]
pub struct Panel {
    pub picture: RgbImage,
    /// [`Scene::appearance`].
    pub scene: String,
    /// Of each subject.
    pub placements: Vec<Placement>,
}

impl From<Composed> for Panel {
    fn from(composed: Composed) -> Panel {
        let scene = composed.scene.appearance();
        Panel { picture: composed.picture, scene, placements: composed.placements }
    }
}

impl Composer {
    /// A panel with `count` training subjects, or a scene alone. `number` counts the draws.
    pub fn training_panel(&self, count: usize, number: u64) -> Result<Panel, ComposeError> {
        let mut draw = SeededRng::new("panel", &[self.seed, count as u64, number]);
        let subjects = distinct(&mut draw, &self.training, count);
        Ok(self.compose(&subjects, &mut draw)?.into())
    }

    /// A panel with `count` held-out subjects, or a scene alone. `number` counts the draws.
    pub fn held_out_panel(&self, count: usize, number: u64) -> Result<Panel, ComposeError> {
        let mut draw = SeededRng::new("held-out panel", &[self.seed, count as u64, number]);
        let subjects = distinct(&mut draw, &self.held_out, count);
        Ok(self.compose(&subjects, &mut draw)?.into())
    }

    /// Two panels of one training subject, in scenes, places, sizes and directions of their own. `number` counts the draws;
    /// `subject` is taken modulo the number of training subjects.
    pub fn training_views(&self, subject: usize, number: u64) -> Result<[RgbImage; 2], ComposeError> {
        let entry = self.training[subject % self.training.len()];
        let view = |side: u64| {
            self.compose(&[entry], &mut SeededRng::new("views", &[self.seed, entry as u64, number, side]))
        };
        Ok([view(0)?.picture, view(1)?.picture])
    }

    /// Two panels of one training subject that sits in both at the same place, as large and in the same direction, in two
    /// scenes. `number` counts the draws; `subject` is taken modulo the number of training subjects.
    pub fn training_layout(&self, subject: usize, number: u64) -> Result<[RgbImage; 2], ComposeError> {
        self.layout(&self.training, subject, number)
    }

    /// [`Composer::training_layout`] of a held-out subject.
    pub fn held_out_layout(&self, subject: usize, number: u64) -> Result<[RgbImage; 2], ComposeError> {
        self.layout(&self.held_out, subject, number)
    }

    fn layout(&self, among: &[usize], subject: usize, number: u64) -> Result<[RgbImage; 2], ComposeError> {
        let entry = among.get(subject % among.len().max(1)).copied();
        let entry = entry.ok_or(ComposeError::TooFewSubjects { have: 0, need: 1 })?;
        let on = |side: u64| {
            let key = [self.seed, entry as u64, number, side];
            let scene = Scene::draw(&mut SeededRng::new("layout scene", &key), self.photos.as_deref());
            self.compose_on(scene, &[entry], &mut SeededRng::new("layout", &key[..3]))
        };
        Ok([on(0)?.picture, on(1)?.picture])
    }
}
