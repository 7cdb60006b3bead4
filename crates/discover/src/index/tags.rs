//! Which agents have a tag: a bitmap for each tag and for all that it is a special case of.

use std::collections::HashMap;

use roaring::RoaringBitmap;

use crate::declare::Skill;
use crate::tag::Tag;

/// Agents by tag. As each agent stands in the bitmaps of all its tags' ancestors, a prefix is one look-up.
#[derive(Debug, Default)]
pub(super) struct Tags(HashMap<Box<str>, RoaringBitmap>);

impl Tags {
    pub(super) fn insert(&mut self, slot: u32, skills: &[Skill]) {
        for name in skills.iter().flat_map(|skill| skill.tag.with_ancestors()) {
            match self.0.get_mut(name) {
                Some(slots) => {
                    slots.insert(slot);
                }
                None => {
                    self.0.insert(name.into(), RoaringBitmap::from_iter([slot]));
                }
            }
        }
    }

    pub(super) fn remove(&mut self, slot: u32, skills: &[Skill]) {
        for name in skills.iter().flat_map(|skill| skill.tag.with_ancestors()) {
            if let Some(slots) = self.0.get_mut(name) {
                slots.remove(slot);
                if slots.is_empty() {
                    self.0.remove(name);
                }
            }
        }
    }

    /// Who has `tag` or a special case of it.
    pub(super) fn under(&self, tag: &Tag) -> Option<&RoaringBitmap> {
        self.0.get(tag.as_str())
    }

    /// Different tags and ancestors.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, slots)| (&**name, slots.len()))
    }
}
